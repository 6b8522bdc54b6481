"""The registered operators misplace::patch_embed and its backward; misplace.kernels._C adds their kernels (csrc/)."""

import torch
from torch import Tensor

from .operators import define, normalisation

_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "patch_embed")
_library.define("patch_embed_path() -> str")


def cpu_path() -> str:
    """How this CPU multiplies bf16 here, chosen once: "brgemm bf16" (AMX or AVX-512 BF16), or "fp32"."""
    return torch.ops.misplace.patch_embed_path()


def patch_embed(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    pos_table: Tensor,
    class_token: Tensor,
    no_position: Tensor | None,
    src: Tensor,
    pos: Tensor,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    layout: str,
) -> Tensor:
    scale, shift = normalisation(images, weight.shape[1], mean, std)
    return torch.ops.misplace.patch_embed(
        images, weight, bias, pos_table, class_token, no_position, src, pos, scale, shift, layout == "hwc"
    )
