"""How far from fp64 an implementation may be: twice as far as eager PyTorch in its dtype, and one rounding.

    error(fused, fp64) <= 2 * error(eager in the same dtype, fp64) + band        values
    error(fused, fp64) <= 3 * error(eager in the same dtype, fp64) + band        gradients

held twice, for the largest error (one wrong element shows) and for the root mean square (a small bias
everywhere shows). The band is what rounding the exact result to its dtype alone may cost: half an ulp of
the largest magnitude, doubled for the largest error, because one more rounding may fall on another element.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

VALUE_FACTOR = 2
GRADIENT_FACTOR = 3


class ToleranceError(AssertionError):
    """A result is farther from fp64 than the derived tolerance allows."""


class Size(NamedTuple):
    """Of a tensor or of an error."""

    largest: float
    root_mean_square: float


def size(tensor: Tensor) -> Size:
    """0 for a tensor without elements."""
    if tensor.numel() == 0:
        return Size(0.0, 0.0)
    wide = tensor.double()
    return Size(wide.abs().max().item(), wide.square().mean().sqrt().item())


def require_close(name: str, actual: Tensor, oracle: Tensor, eager_errors: Sequence[Size], *, factor: int) -> None:
    """ToleranceError unless `actual` is as near `oracle` (fp64) as `factor` times eager's error and the band.

    eager_errors: eager's errors in the dtype of `actual` on this input, and on others like it where one has
    few elements; the largest counts. A NaN or infinity where the oracle has none is an error.
    """
    if actual.shape != oracle.shape:
        raise ToleranceError(f"{name}: shape {list(actual.shape)}, expected {list(oracle.shape)}")
    half_ulp = torch.finfo(actual.dtype).eps / 2
    error, magnitude = size(actual.double() - oracle), size(oracle)
    for norm, roundings in (("largest", 2), ("root_mean_square", 1)):
        eager = max(getattr(each, norm) for each in eager_errors)
        allowed = factor * eager + roundings * half_ulp * getattr(magnitude, norm)
        # written so that a NaN fails
        if not getattr(error, norm) <= allowed:
            raise ToleranceError(f"{name}: {norm} error {getattr(error, norm):.3e} > {allowed:.3e}")
