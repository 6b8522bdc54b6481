"""Sizes and rates that break token plans, the rules every plan obeys, and a plan made by hand."""

import torch
from torch import Tensor

from ..philox import Stream, draw

NUM_PATCHES = (36, 49, 196, 197, 256)
DROP_RATES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
WRONG_RATES = (0.0, 0.2, 1.0)
# the last ones differ from small ones in the high counter word alone, or in their sign bit of 32
INDICES = (0, 1, 7, 2**31, 2**32, 2**32 + 7, 3 * 2**40 + 1, 2**63 - 1)


def require_rules(plan: tuple[Tensor, Tensor, Tensor], num_patches: int) -> None:
    """AssertionError unless src and pos are distinct patches, src ascends, and wrong says pos != src."""
    src, pos, wrong = plan
    assert src.dtype == pos.dtype == torch.int32 and wrong.dtype == torch.bool
    assert src.shape == pos.shape == wrong.shape
    assert ((src >= 0) & (src < num_patches) & (pos >= 0) & (pos < num_patches)).all()
    assert (src.diff(dim=1) > 0).all(), "src does not ascend"
    assert (pos.sort(dim=1).values.diff(dim=1) > 0).all(), "two tokens share a position"
    assert torch.equal(wrong, pos != src)


def plan_by_hand(
    index: int, num_patches: int, num_kept: int, wrong_rate: float, *, seed: int, epoch: int, view: int
) -> list[tuple[int, int, bool]]:
    """One image's (src, pos, wrong) per token, in plain Python: it shares only Philox with the impls."""
    words = draw(torch.tensor([index]), num_patches, seed=seed, epoch=epoch, view=view, stream=Stream.TOKEN_PLAN)
    word0, word1 = words[0][0].tolist(), words[1][0].tolist()
    permutation = sorted(range(num_patches), key=lambda patch: (word0[patch], patch))
    kept, dropped = permutation[:num_kept], permutation[num_kept:]
    position = {patch: patch for patch in kept}
    wrong = [patch for patch in kept if word1[patch] < round(wrong_rate * 2**32)]
    for patch, where in zip(wrong, dropped, strict=False):
        position[patch] = where
    rest = wrong[len(dropped) :]
    for patch, where in zip(rest, rest[1:] + rest[:1], strict=True):
        position[patch] = where
    return [(patch, position[patch], position[patch] != patch) for patch in sorted(kept)]
