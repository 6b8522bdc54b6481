"""The specification of patch_embed, in eager PyTorch: embed every patch, then gather."""

import torch
from torch import Tensor


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
    """out[b, 0] = class_token + pos_table[0]
    out[b, 1 + k] = embedded[b, src[b, k]] + (pos_table[1 + pos[b, k]] if pos[b, k] >= 0 else no_position)
    embedded[b, i, d] = bias[d]
        + sum over c, y, x of weight[d, c, y, x] * (pixel (c, y, x) of patch i of image b - mean[c]) / std[c]

    images [B, H, W, C] ("hwc") or [B, C, H, W] ("chw"): uint8, read as [0, 1] after division by 255, or
    floating; weight [D, C, p, p]; pos_table [1 + L, D]; class_token and no_position [D]; src and pos [B,
    K] -> [B, 1 + K, D]. Patch i is row i // (W / p), column i % (W / p) of the grid. Computed in
    promote_types(dtype of weight, dtype of floating images, float32), returned in dtype of weight.
    IndexError where src is not in [0, L) or pos not in [-1, L), or pos is -1 and no_position is None.
    Source: [S] ViT (Dosovitskiy et al. 2021) for the projection, DILEMMA for positions that are not the
    patch's own.
    """
    if not torch.compiler.is_compiling():
        _check_range(src, pos, pos_table.shape[0] - 1, no_position)
    compute = torch.promote_types(weight.dtype, torch.float32)
    if images.is_floating_point():
        compute = torch.promote_types(compute, images.dtype)
    patches = _patches(_pixels(images, compute, mean, std, layout), weight.shape[-1])
    embedded = patches @ weight.to(compute).flatten(1).T + bias.to(compute)
    batch, kept = src.shape
    tokens = embedded.gather(1, src.long()[..., None].expand(batch, kept, weight.shape[0]))
    rows = pos_table.to(compute)[pos.long().clamp(min=0) + 1]
    if no_position is not None:
        rows = torch.where((pos < 0)[..., None], no_position.to(compute), rows)
    first = (class_token.to(compute) + pos_table.to(compute)[0]).expand(batch, 1, -1)
    return torch.cat([first, tokens + rows], dim=1).to(weight.dtype)


def _pixels(
    images: Tensor,
    compute: torch.dtype,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    layout: str,
) -> Tensor:
    """Normalised pixels [B, C, H, W]."""
    pixels = images.to(compute)
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    if layout == "hwc":
        pixels = pixels.permute(0, 3, 1, 2)
    if mean is None:
        return pixels
    centre = pixels.new_tensor(mean)[:, None, None]
    return (pixels - centre) / pixels.new_tensor(std)[:, None, None]


def _patches(pixels: Tensor, patch_size: int) -> Tensor:
    """All patches [B, L, C * p * p], each flattened as weight[d] is: channel, row, column."""
    grid = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _check_range(src: Tensor, pos: Tensor, num_patches: int, no_position: Tensor | None) -> None:
    if src.numel() == 0:
        return
    if src.min() < 0 or src.max() >= num_patches:
        raise IndexError(f"patch_embed: src must be in [0, {num_patches}), {_found(src)}")
    lowest = 0 if no_position is None else -1
    if pos.min() < lowest or pos.max() >= num_patches:
        raise IndexError(f"patch_embed: pos must be in [{lowest}, {num_patches}), {_found(pos)}")


def _found(index: Tensor) -> str:
    return f"found {int(index.min())} .. {int(index.max())}"
