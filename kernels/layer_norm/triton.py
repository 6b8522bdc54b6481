"""layer_norm on the GPU: one kernel each way and the addition of partial sums.

Formula         y = (x - mean) * rstd * weight + bias; with n = (x - mean) * rstd and g = dy * weight,
                dx = rstd * (g - mean(g) - n * mean(g * n)), dweight = sum(dy * n), dbias = sum(dy) over rows.
Bytes moved     an element is read and written once forward, read twice (x, dy) and written once backward: 10 bytes
                in bf16. A program of the backward adds 8 D bytes of partial sums.
Operations      about 8 an element forward, 14 backward, on vectors: bound by memory.
Saved           x, and mean and rstd of every row in fp32.
Against eager   LayerNorm in autocast casts to fp32 and back: 12 bytes an element forward instead of 4.
"""

import torch
from torch import Tensor

from ..layer_norm_triton import launch_backward, launch_forward, require_fits
from .autograd import define, differentiable, empty_results

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "layer_norm_triton")


def _launch(x, weight, bias, eps, save):
    y, mean, rstd = empty_results(x, weight, bias, eps, save)
    launch_forward(x, None, None, weight, bias, eps, (None, y, mean, rstd))
    return y, mean, rstd


def _launch_backward(dy, x, weight, mean, rstd):
    dx = x.new_empty(x.shape)
    return dx, launch_backward(None, dy, x, weight, mean, rstd, None, dx, None)


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("layer_norm_triton", _launch, _key)
    _library.impl("layer_norm_triton_backward", _launch_backward, _key)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """ValueError for rows wider than a tile."""
    require_fits("layer_norm", x)
    ops = torch.ops.misplace
    return differentiable((ops.layer_norm_triton, ops.layer_norm_triton_backward), x, weight, bias, eps)
