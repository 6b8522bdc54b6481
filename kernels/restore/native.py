"""The registered ops misplace::restore*; misplace.kernels._C holds their kernels (csrc/).

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

from .autograd import define, differentiable

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "restore", ", str isa")
_library.define("restore_path() -> str")


def cpu_path() -> str:
    """The vector instructions that the CPU kernel takes here."""
    return torch.ops.misplace.restore_path()


def restore(tokens: Tensor, src: Tensor, mask_token: Tensor, position: Tensor, *, isa: str = "") -> Tensor:
    ops = torch.ops.misplace
    return differentiable((ops.restore, ops.restore_backward), tokens, src, mask_token, position, isa)
