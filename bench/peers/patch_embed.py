"""The embedding as timm and MAE write it: embed every patch with a convolution, gather the kept, add positions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embed_all_then_gather(
    images: Tensor,  # uint8 [B, H, W, C]
    weight: Tensor,  # [D, C, p, p]
    bias: Tensor,
    pos_table: Tensor,  # [1 + L, D]
    class_token: Tensor,
    no_position: Tensor,
    src: Tensor,  # [B, K]
    pos: Tensor,
    mean: Tensor,  # [C, 1, 1], on the device
    std: Tensor,
) -> Tensor:  # [B, 1 + K, D]
    """Normalise in fp32 -> Conv2d in the weight's dtype -> gather -> add rows of the table -> concatenate."""
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    embedded = F.conv2d(pixels.to(weight.dtype), weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    kept = embedded.gather(1, src.long()[..., None].expand(-1, -1, embedded.shape[2]))
    table = torch.cat([pos_table, no_position[None]])
    rows = table[torch.where(pos < 0, len(pos_table), 1 + pos.long())]
    first = (class_token + pos_table[0]).expand(len(images), 1, -1)
    return torch.cat([first, kept + rows], dim=1)
