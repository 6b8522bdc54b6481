"""patch_embed: images and a token plan to the transformer's input sequence."""

import torch
from torch import Tensor

from ..checks import (
    INDEX_DTYPES,
    require_device,
    require_dims,
    require_dtype,
    require_floating,
    require_shape,
)
from ..impl import Impl, choose

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.NATIVE, Impl.TORCH, Impl.REFERENCE),
}
OP = "patch_embed"


def patch_embed(
    images: Tensor,  # [B, H, W, C] ("hwc") or [B, C, H, W] ("chw"), uint8 or floating
    weight: Tensor,  # [D, C, p, p], as nn.Conv2d(C, D, p, stride=p)
    bias: Tensor,  # [D]
    pos_table: Tensor,  # [1 + L, D]; row 0 is the class token's, row 1 + i that of patch i
    class_token: Tensor,  # [D]
    no_position: Tensor | None,  # [D], added where pos is -1; None when no pos is
    src: Tensor,  # [B, K], int32 or int64, in [0, L)
    pos: Tensor,  # [B, K], int32 or int64, in [-1, L)
    *,
    patch_size: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    layout: str = "hwc",
    impl: Impl | str = "auto",
) -> Tensor:  # [B, 1 + K, D], dtype of weight
    """Row 0 of an image: class_token + pos_table[0].
    Row 1 + k: weight . patch[src[k]] + bias + (pos_table[1 + pos[k]], or no_position where pos[k] is -1).
    Patches are numbered row by row, L = (H / p) * (W / p).

    uint8 images are scaled by 1 / 255, floating ones taken as they are. mean and std are one number per
    channel, in units where white is 1; None for both leaves the pixels unnormalised.
    Differentiable in weight, bias, pos_table, class_token, no_position and floating images.
    ValueError for a shape (also an image side that p does not divide, and K = 0), a layout or a device;
    TypeError for a dtype. impl="reference", outside torch.compile, and "native" on the CPU raise IndexError for
    src or pos out of range; the others trust it. impl="triton" takes no float64.
    """
    _validate_images(images, weight, patch_size, mean, std, layout)
    _validate_tables(images, weight, bias, pos_table, class_token, no_position, layout)
    _validate_plan(images, src, pos)
    run = _implementation(choose(OP, impl, images.device, SUPPORTED))
    return run(images, weight, bias, pos_table, class_token, no_position, src, pos, mean, std, layout)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import patch_embed as run
        case Impl.TRITON:
            from .triton import patch_embed as run
        case Impl.TORCH:
            from .stock import patch_embed as run
        case _:
            from .reference import patch_embed as run
    return run


def _validate_images(
    images: Tensor,
    weight: Tensor,
    patch_size: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    layout: str,
) -> None:
    if layout not in ("hwc", "chw"):
        raise ValueError(f'patch_embed: layout must be "hwc" or "chw", not {layout!r}')
    require_dims(OP, "images", images, 4, "[B, H, W, C]" if layout == "hwc" else "[B, C, H, W]")
    require_dims(OP, "weight", weight, 4, "[D, C, p, p]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"patch_embed: images must be uint8 or floating point, not {images.dtype}")
    height, width, channels = _sizes(images, layout)
    require_shape(OP, "weight", weight, (weight.shape[0], channels, patch_size, patch_size), "[D, C, p, p]")
    if height == 0 or width == 0 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_embed: a {height} x {width} image is no grid of {patch_size} x {patch_size} patches")
    if (mean is None) != (std is None):
        raise ValueError("patch_embed: give mean and std together, or None for both")
    if mean is not None and not len(mean) == len(std) == channels:
        raise ValueError(
            f"patch_embed: mean and std need {channels} numbers (channels), not {len(mean)} and {len(std)}"
        )


def _validate_tables(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    pos_table: Tensor,
    class_token: Tensor,
    no_position: Tensor | None,
    layout: str,
) -> None:
    height, width, _ = _sizes(images, layout)
    dim, patch_size = weight.shape[0], weight.shape[-1]
    num_patches = (height // patch_size) * (width // patch_size)
    require_shape(OP, "bias", bias, (dim,), "[D]")
    require_shape(OP, "pos_table", pos_table, (1 + num_patches, dim), "[1 + L, D]")
    require_shape(OP, "class_token", class_token, (dim,), "[D]")
    if no_position is not None:
        require_shape(OP, "no_position", no_position, (dim,), "[D]")
    tables = {"bias": bias, "pos_table": pos_table, "class_token": class_token, "no_position": no_position}
    require_floating(OP, weight=weight, **tables)
    require_device(OP, images.device, weight=weight, **tables)


def _validate_plan(images: Tensor, src: Tensor, pos: Tensor) -> None:
    require_dims(OP, "src", src, 2, "[B, K]")
    if src.shape[1] == 0:
        raise ValueError("patch_embed: the plan keeps no patch (K = 0)")
    require_shape(OP, "src", src, (images.shape[0], src.shape[1]), "[B, K]")
    require_shape(OP, "pos", pos, src.shape, "[B, K]")
    require_dtype(OP, "src", src, *INDEX_DTYPES)
    require_dtype(OP, "pos", pos, *INDEX_DTYPES)
    require_device(OP, images.device, src=src, pos=pos)


def _sizes(images: Tensor, layout: str) -> tuple[int, int, int]:
    """Height, width, channels."""
    if layout == "hwc":
        return images.shape[1], images.shape[2], images.shape[3]
    return images.shape[2], images.shape[3], images.shape[1]
