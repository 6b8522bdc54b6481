"""The registered op misplace::info_nce; misplace.kernels._C adds its kernel (csrc/).

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

from .autograd import define, differentiable

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "info_nce", ", str isa")
_library.define("info_nce_path() -> str")


def cpu_path() -> str:
    """The instruction set that the kernel takes here, and how bf16 is multiplied."""
    return torch.ops.misplace.info_nce_path()


def info_nce(query: Tensor, key: Tensor, temperature: float, first_row: int, *, isa: str = "") -> Tensor:
    return differentiable(torch.ops.misplace.info_nce, query, key, temperature, first_row, False, isa)


def nt_xent(query: Tensor, key: Tensor, temperature: float, first_row: int, *, isa: str = "") -> Tensor:
    return differentiable(torch.ops.misplace.info_nce, query, key, temperature, first_row, True, isa)
