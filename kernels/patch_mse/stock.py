"""patch_mse by PyTorch's own operators, in fp32 or wider: only the patches that are predicted leave the images."""

import torch
from torch import Tensor

from .autograd import compute_dtype, differentiable, gradient_dtype


def patch_mse(
    prediction: Tensor,
    images: Tensor,
    index: Tensor,
    patch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    normalise: bool,
    eps: float,
) -> Tensor:
    return differentiable(_compute, _rescale_, prediction, images, index, patch_size, mean, std, normalise, eps)


def _compute(prediction, images, index, patch_size, mean, std, normalise, eps, gradient):
    wide = compute_dtype(prediction)
    pixels = _pixels(images, index, patch_size).to(wide)  # [B, M, p * p, C]
    target = pixels.div_(255).sub_(pixels.new_tensor(mean)).div_(pixels.new_tensor(std)).flatten(2)
    if normalise:
        variance, average = torch.var_mean(target, dim=-1, keepdim=True)
        target = target.sub_(average).mul_((variance + eps).rsqrt_())
    error = prediction.to(wide) - target
    loss = error.square().mean()
    if not gradient:
        return loss, prediction.new_empty(0, dtype=gradient_dtype(prediction))
    return loss, error.mul_(2 / error.numel()).to(gradient_dtype(prediction))


def _pixels(images: Tensor, index: Tensor, patch_size: int) -> Tensor:
    """uint8 [B, M, p * p, C]. A row of a patch is contiguous: the images are a table of such rows."""
    batch, height, width, channels = images.shape
    columns = width // patch_size
    index = index.long()
    rows = (index // columns * patch_size)[..., None] + torch.arange(patch_size, device=index.device)
    image = torch.arange(batch, device=index.device).view(batch, 1, 1)
    place = (image * height + rows) * columns + (index % columns)[..., None]  # [B, M, p]
    pixels = images.reshape(-1, patch_size * channels).index_select(0, place.flatten())
    return pixels.view(*index.shape, patch_size**2, channels)


def _rescale_(d_prediction: Tensor, scale: Tensor) -> None:
    d_prediction.mul_(scale)
