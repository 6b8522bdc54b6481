"""Which sample stands in for one that cannot be read."""

import torch

from misplace.kernels.philox import Stream, draw

ATTEMPTS = 16


def replacements(index: int, epoch: int, num_samples: int, seed: int) -> list[int]:
    """The samples to try, in order: a pure function, the same on every worker and after a resume."""
    high, low, _, _ = draw(torch.tensor([index]), ATTEMPTS, seed=seed, epoch=epoch, view=0, stream=Stream.REPLACEMENT)
    return [(h << 32 | w) % num_samples for h, w in zip(high[0].tolist(), low[0].tolist())]
