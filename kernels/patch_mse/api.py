"""patch_mse: MAE's loss, straight from the uint8 images."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose_for_dtype

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
FUSED_DTYPES = {
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}
MAX_CHANNELS, MAX_PATCH_SIZE = 4, 128  # sums of whole numbers over a patch are exact in 32 bits
OP = "patch_mse"


def patch_mse(
    prediction: Tensor,  # [B, M, p * p * C], pixels in the order (row, column, channel)
    images: Tensor,  # uint8 [B, H, W, C], C from 1 to 4
    index: Tensor,  # int32 [B, M], the patches that are predicted, in [0, L)
    *,
    patch_size: int,  # p, from 1 to 128
    mean: tuple[float, ...],
    std: tuple[float, ...],
    normalise: bool = True,
    eps: float = 1e-6,
    impl: Impl | str = "auto",
) -> Tensor:  # scalar, fp32 (fp64 for fp64 predictions)
    """Mean squared error between the predictions and the pixels (u8 / 255 - mean) / std of the patches `index`.

    normalise: first bring every patch to mean 0 and variance 1, the variance with n - 1 and eps added, as MAE does.
    Patches are numbered row by row, L = (H / p) * (W / p); mean and std are one number per channel, in units where
    white is 1. Differentiable in prediction, in its dtype; no target is written. A patch may be named twice.
    ValueError for a shape (also an image side that p does not divide, nothing predicted (B or M = 0), and normalise
    with patches of one number), a device, std not above 0 or eps below 0; TypeError for a dtype. impl="reference",
    outside torch.compile, and "native" raise IndexError for index out of range; the others trust it. native takes fp32
    and bf16 predictions, triton fp16 too; for other dtypes "auto" means torch.
    """
    _validate(prediction, images, index, patch_size)
    _validate_numbers(images.shape[3], patch_size, mean, std, normalise, eps)
    run = _implementation(choose_for_dtype(OP, impl, prediction, SUPPORTED, FUSED_DTYPES))
    return run(prediction, images, index, patch_size, mean, std, normalise, eps)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import patch_mse as run
        case Impl.TRITON:
            from .triton import patch_mse as run
        case Impl.TORCH:
            from .stock import patch_mse as run
        case _:
            from .reference import patch_mse as run
    return run


def _validate(prediction: Tensor, images: Tensor, index: Tensor, patch_size: int) -> None:
    require_dims(OP, "images", images, 4, "[B, H, W, C]")
    require_dims(OP, "index", index, 2, "[B, M]")
    batch, height, width, channels = images.shape
    if not 1 <= patch_size <= MAX_PATCH_SIZE:
        raise ValueError(f"patch_mse: patch_size must be in [1, {MAX_PATCH_SIZE}], not {patch_size}")
    if height == 0 or width == 0 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_mse: a {height} x {width} image is no grid of {patch_size} x {patch_size} patches")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"patch_mse: images must have 1 to {MAX_CHANNELS} channels, not {channels}")
    require_shape(OP, "index", index, (batch, index.shape[1]), "[B, M]")
    if index.numel() == 0:
        raise ValueError(f"patch_mse: the mean of no patches: index is {list(index.shape)}")
    require_shape(OP, "prediction", prediction, (*index.shape, patch_size**2 * channels), "[B, M, p * p * C]")
    require_dtype(OP, "images", images, torch.uint8)
    require_dtype(OP, "index", index, torch.int32)
    require_floating(OP, prediction=prediction)
    require_device(OP, prediction.device, images=images, index=index)


def _validate_numbers(
    channels: int, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...], normalise: bool, eps: float
) -> None:
    if not len(mean) == len(std) == channels:
        raise ValueError(f"patch_mse: mean and std need {channels} numbers (channels), not {len(mean)} and {len(std)}")
    if not all(number > 0 for number in std) or not eps >= 0:
        raise ValueError(f"patch_mse: std must be above 0 and eps not below, not {std} and {eps}")
    if normalise and patch_size**2 * channels == 1:
        raise ValueError("patch_mse: a patch of one number has no variance; give normalise=False")
