"""The registered ops misplace::gelu*; misplace.kernels._C holds their kernels.

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

from .autograd import define, differentiable

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "gelu", ", str isa")


def gelu(x: Tensor, bias: Tensor | None = None, *, isa: str = "") -> Tensor:
    """Any shape; the result is contiguous."""
    return differentiable((torch.ops.misplace.gelu, torch.ops.misplace.gelu_backward), x, bias, isa)
