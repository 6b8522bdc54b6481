"""The specification of patch_mse, in eager PyTorch: cut every patch, normalise, gather, compare."""

import torch
from torch import Tensor


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
    """x[b, m] = the pixels (u8 / 255 - mean[c]) / std[c] of patch index[b, m] of image b, in the order (row, column,
    channel), n = p * p * C of them
    target = (x - a) / sqrt(v + eps) with normalise, a = sum(x) / n and v = sum((x - a)^2) / (n - 1); else x
    loss = mean over b, m and pixel of (prediction - target)^2

    prediction [B, M, n], images uint8 [B, H, W, C], index [B, M] -> scalar. Patch i is row i // (W / p), column
    i % (W / p) of the grid. Computed and returned in promote_types(dtype of prediction, float32).
    IndexError where index is not in [0, (H / p) * (W / p)).
    Source: [S] MAE (He et al. 2022): mean squared error of normalised pixels on the masked patches only; the order of
    the pixels, the variance with n - 1 and eps 1e-6 as in its authors' code.
    """
    num_patches = (images.shape[1] // patch_size) * (images.shape[2] // patch_size)
    if not torch.compiler.is_compiling() and (index.min() < 0 or index.max() >= num_patches):
        found = f"{int(index.min())} .. {int(index.max())}"
        raise IndexError(f"patch_mse: index must be in [0, {num_patches}), found {found}")
    compute = torch.promote_types(prediction.dtype, torch.float32)
    pixels = images.to(compute) / 255
    pixels = (pixels - pixels.new_tensor(mean)) / pixels.new_tensor(std)
    grid = pixels.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))  # [B, rows, p, columns, p, C]
    patches = grid.transpose(2, 3).flatten(3).flatten(1, 2)
    target = patches.gather(1, index.long()[..., None].expand(-1, -1, patches.shape[2]))
    if normalise:
        centred = target - target.mean(dim=-1, keepdim=True)
        target = centred / (target.var(dim=-1, keepdim=True) + eps).sqrt()
    return (prediction.to(compute) - target).square().mean()
