"""Random inputs named by a seed, the same on every machine."""

import functools
import math

import torch
from torch import Tensor

from ..philox import philox4x32, uniform


@functools.lru_cache(maxsize=128)
def _uniforms(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two independent float64 [count] in [0, 1)."""
    zero = torch.zeros(1, dtype=torch.int64)
    words = philox4x32((torch.arange(count), zero, zero, zero), seed)
    return uniform(words[0]), uniform(words[1])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Standard normal numbers, drawn in float64 (Box and Muller) and rounded to `dtype`."""
    radius, angle = _uniforms(math.prod(shape), seed)
    values = (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)
    return values.view(shape).to(device=device, dtype=dtype)


def integers(*shape: int, high: int, seed: int, dtype: torch.dtype = torch.int64, device: str = "cpu") -> Tensor:
    """Whole numbers uniform in [0, high)."""
    values, _ = _uniforms(math.prod(shape), seed)
    return (values * high).floor().view(shape).to(device=device, dtype=dtype)
