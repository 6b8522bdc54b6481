"""The gate of an op with a derived tolerance: kernels/testing/tolerance.py, as an error and its bound."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from misplace.kernels.testing.compare import values_and_gradients
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, VALUE_FACTOR, size

from .registry import Check

Tensors = dict[str, Tensor]


def against_fp64(op: Callable, eager: Callable, oracle: Callable, tensors: Tensors, wanted: Sequence[str]) -> Check:
    """Root mean square error of the value or gradient that comes nearest to its bound, and that bound."""
    actual, plain = (values_and_gradients(each, tensors, wanted) for each in (op, eager))
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    exact = values_and_gradients(oracle, wide, wanted)
    checks = []
    for name, result in actual.items():
        factor = GRADIENT_FACTOR if name.startswith("d ") else VALUE_FACTOR
        error, plain_error = (size(each.double() - exact[name]) for each in (result, plain[name]))
        band = torch.finfo(result.dtype).eps / 2 * size(exact[name]).root_mean_square
        checks.append(Check(error.root_mean_square, factor * plain_error.root_mean_square + band))
    # a NaN is red wherever it stands
    return max(checks, key=lambda check: float("inf") if check.error != check.error else check.error / check.bound)
