"""MAE's loss as its users write it: patchify the whole normalised image, normalise every patch, compare the dropped."""

from torch import Tensor


def eager_patch_mse(
    prediction: Tensor,  # [B, M, p * p * C]
    images: Tensor,  # fp32 [B, C, H, W], normalised before, as the encoder had it: this costs the peer nothing
    index: Tensor,  # int64 [B, M]
    *,
    patch_size: int,
) -> Tensor:  # scalar
    """patchify ('nchpwq->nhwpqc') -> (x - mean) / sqrt(var + eps) -> gather -> mean of squares."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    target = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    target = target.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)
    mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    target = (target - mean) / (variance + 1e-6) ** 0.5
    target = target.gather(1, index[..., None].expand(-1, -1, target.shape[2]))
    return ((prediction - target) ** 2).mean(dim=-1).mean()
