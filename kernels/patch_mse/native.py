"""The registered ops misplace::patch_mse*; misplace.kernels._C holds their kernels (csrc/).

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

from .autograd import define, differentiable

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "patch_mse", ", str isa")
_library.define("patch_mse_path() -> str")


def cpu_path() -> str:
    """The vector instructions that the CPU kernel takes here."""
    return torch.ops.misplace.patch_mse_path()


def patch_mse(
    prediction: Tensor,
    images: Tensor,
    index: Tensor,
    patch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    normalise: bool,
    eps: float,
    *,
    isa: str = "",
) -> Tensor:
    operator = torch.ops.misplace.patch_mse
    return differentiable(operator, None, prediction, images, index, patch_size, mean, std, normalise, eps, isa)
