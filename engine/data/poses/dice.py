"""The random numbers of one picture: Philox words, named by (seed, split, index), read in a fixed order."""

import numpy as np
import torch

from misplace.kernels.philox import Stream, draw, uniform

SPLITS = ("train", "test")
# How many numbers each section of a picture may read; sections never share one, so what the pose reads
# cannot shift what the textures read.
SECTIONS = {"pose": 40, "figure": 160, "background": 296}
_ITEMS = sum(SECTIONS.values()) // 4
_NOISE_VIEW = 255


class Dice:
    """Reads uniform numbers one after another."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = iter(values.tolist())

    def uniform(self, low: float, high: float) -> float:
        """In [low, high)."""
        return low + (high - low) * next(self._values)

    def around(self, spread: float) -> float:
        """In [-spread, spread)."""
        return self.uniform(-spread, spread)

    def integer(self, low: int, high: int) -> int:
        """In [low, high], both included."""
        return low + int(next(self._values) * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return next(self._values) < probability


def _words(index: torch.Tensor, items: int, seed: int, view: int) -> np.ndarray:
    """Uniform numbers [B, 4 * items]."""
    words = draw(index, items, seed=seed, epoch=0, view=view, stream=Stream.RENDER)
    return uniform(torch.stack(words, dim=-1).flatten(1)).numpy()


def roll(indices: range, *, seed: int, split: str) -> list[dict[str, Dice]]:
    """The dice of each picture, by section. A picture's numbers do not depend on the others in `indices`."""
    values = _words(torch.tensor(indices, dtype=torch.int64), _ITEMS, seed, SPLITS.index(split))
    ends = np.cumsum(list(SECTIONS.values()))[:-1]
    return [dict(zip(SECTIONS, map(Dice, np.split(row, ends)))) for row in values]


def noise_field(side: int, *, seed: int) -> np.ndarray:
    """Uniform numbers float32 [side, side], one field for all pictures of a seed."""
    values = _words(torch.arange(side), -(-side // 4), seed, _NOISE_VIEW)
    return values[:, :side].astype(np.float32)
