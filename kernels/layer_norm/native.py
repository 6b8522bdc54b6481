"""The registered ops misplace::layer_norm*; misplace.kernels._C holds their kernels (csrc/cpu/layer_norm*).

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

from .autograd import define, differentiable

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "layer_norm", ", str isa")


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, isa: str = "") -> Tensor:
    """x [..., D], weight and bias [D] in any floating dtype; the result is contiguous."""
    ops = torch.ops.misplace
    return differentiable((ops.layer_norm, ops.layer_norm_backward), x, weight, bias, eps, isa)
