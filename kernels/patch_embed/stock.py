"""patch_embed by PyTorch's own operators: gathers the kept pixels, then normalises and projects those."""

import torch
import torch.nn.functional as F
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
    pixels = _kept_pixels(images, src, weight.shape[-1], layout)
    pixels = _normalise(pixels, mean, std, layout).to(weight.dtype)
    # The small weight is brought into the pixels' order, not the pixels into the weight's.
    matrix = weight.permute(0, 2, 3, 1) if layout == "hwc" else weight
    tokens = F.linear(pixels.flatten(2), matrix.flatten(1), bias.to(weight.dtype))
    tokens = tokens + _position_rows(pos_table, no_position, pos, weight.dtype)
    first = (class_token + pos_table[0]).to(weight.dtype).expand(tokens.shape[0], 1, -1)
    return torch.cat([first, tokens], dim=1)


def _kept_pixels(images: Tensor, src: Tensor, patch_size: int, layout: str) -> Tensor:
    """The kept patches as they lie in memory: [B, K, p, p, C] from "hwc", [B, K, C, p, p] from "chw".

    One row of one patch is contiguous, so the batch is a table of such rows and the gather copies whole rows.
    """
    batch, channels = images.shape[0], images.shape[3 if layout == "hwc" else 1]
    height, width = images.shape[1:3] if layout == "hwc" else images.shape[2:]
    columns = width // patch_size
    src = src.long()
    in_patch = torch.arange(patch_size, device=src.device)
    rows = (src // columns * patch_size)[..., None] + in_patch  # [B, K, p]: rows of pixels in a plane
    planes = torch.arange(batch, device=src.device).view(batch, 1, 1)
    if layout == "chw":
        planes = planes[..., None] * channels + torch.arange(channels, device=src.device)[:, None]
        rows, src = rows[:, :, None], src[..., None]  # [B, K, C, p]
    index = (planes * height + rows) * columns + (src % columns)[..., None]
    run = patch_size * channels if layout == "hwc" else patch_size
    kept = images.reshape(-1, run).index_select(0, index.flatten())
    return kept.view(*index.shape, *((patch_size, channels) if layout == "hwc" else (patch_size,)))


def _normalise(pixels: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, layout: str) -> Tensor:
    """(pixels - mean) / std as one multiplication and one addition, in fp32 or wider."""
    unit = 1 / 255 if pixels.dtype == torch.uint8 else 1.0
    wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    if mean is None:
        return wide * unit if unit != 1.0 else wide
    scale = wide.new_tensor([unit / s for s in std])
    shift = wide.new_tensor([-m / s for m, s in zip(mean, std)])
    if layout == "chw":
        scale, shift = scale[:, None, None], shift[:, None, None]
    return torch.addcmul(shift, wide, scale)


def _position_rows(pos_table: Tensor, no_position: Tensor | None, pos: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, K, D]; the learned "no position" vector is looked up as one more row of the table."""
    table, rows = pos_table, pos.long() + 1
    if no_position is not None:
        table = torch.cat([pos_table, no_position[None].to(pos_table.dtype)])
        rows = torch.where(pos < 0, pos_table.shape[0], rows)
    # the backward adds a row per image: in fp32, or the sum would stall
    lookup = torch.promote_types(table.dtype, torch.float32) if table.requires_grad else dtype
    return F.embedding(rows, table.to(lookup)).to(dtype)
