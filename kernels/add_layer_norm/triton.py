"""add_layer_norm on the GPU: one kernel each way and the addition of partial sums.

Formula         sum = x + branch_scale * branch, rounded; normed = (sum - mean) * rstd * weight + bias. With
                n = (sum - mean) * rstd and g = dnormed * weight: dx = dsum + rstd * (g - mean(g) - n * mean(g * n)),
                dbranch = branch_scale * dx, dweight = sum(dnormed * n), dbias = sum(dnormed) over rows.
Bytes moved     an element is read twice and written twice forward, read three times (dsum, dnormed, sum) and
                written once backward: 16 bytes in bf16, 2 more with branch_scale. A program of the backward adds
                8 D bytes of partial sums.
Operations      about 10 an element forward, 16 backward, on vectors: bound by memory.
Saved           the sum, which the next residual addition keeps anyway, and two fp32 numbers a row.
Against eager   an addition and LayerNorm, and their backward, move 22 bytes an element in bf16 at least, 38 where
                autocast widens what is normalised, and more for every scale of a branch.
"""

import torch
from torch import Tensor

from ..layer_norm_triton import launch_backward, launch_forward, require_fits
from .autograd import define, differentiable, empty_results

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "add_layer_norm_triton")


def _launch(x, branch, weight, bias, branch_scale, eps, save):
    results = empty_results(x, branch, weight, bias, branch_scale, eps, save)
    launch_forward(x, branch, branch_scale, weight, bias, eps, results)
    return results


def _launch_over_x(x, branch, weight, bias, branch_scale, eps):
    _, *results = empty_results(x[:0], branch, weight, bias, branch_scale, eps, False)
    normed = torch.empty_like(x)
    launch_forward(x, branch, branch_scale, weight, bias, eps, (x, normed, *results[1:]))
    return normed


def _launch_backward(dsum, dnormed, total, weight, mean, rstd, branch_scale):
    dx = total.new_empty(total.shape)
    dbranch = total.new_empty((0,) if branch_scale is None else total.shape)
    return dx, dbranch, launch_backward(dsum, dnormed, total, weight, mean, rstd, branch_scale, dx, dbranch)


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("add_layer_norm_triton", _launch, _key)
    _library.impl("add_layer_norm_triton_", _launch_over_x, _key)
    _library.impl("add_layer_norm_triton_backward", _launch_backward, _key)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, branch_scale: Tensor | None, inplace: bool
) -> tuple[Tensor, Tensor]:
    """sum and normed. ValueError for rows wider than a tile."""
    require_fits("add_layer_norm", x)
    ops = torch.ops.misplace
    ops = ops.add_layer_norm_triton, ops.add_layer_norm_triton_, ops.add_layer_norm_triton_backward
    return differentiable(ops, x, branch, weight, bias, eps, branch_scale, inplace)
