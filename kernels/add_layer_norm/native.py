"""The registered ops misplace::add_layer_norm*; misplace.kernels._C holds their kernels (csrc/cpu/layer_norm*).

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

from .autograd import define, differentiable

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "add_layer_norm", ", str isa")


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    branch_scale: Tensor | None,
    inplace: bool,
    *,
    isa: str = "",
) -> tuple[Tensor, Tensor]:
    """sum and normed, contiguous."""
    ops = torch.ops.misplace
    ops = ops.add_layer_norm, ops.add_layer_norm_, ops.add_layer_norm_backward
    return differentiable(ops, x, branch, weight, bias, eps, branch_scale, inplace, isa)
