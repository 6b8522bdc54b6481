"""timm's ViT on crops of two sizes as DINO's users run it: a pass per resolution, positions resized in each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .timm_trunk import TimmTrunk


class TimmCrops(nn.Module):
    """trunk: timm's; its positions and patches are trained."""

    def __init__(self, trunk: TimmTrunk):
        super().__init__()
        self.trunk = trunk
        trunk.vit.patch_embed.requires_grad_(True)
        trunk.vit.pos_embed.requires_grad_(True)

    def forward(
        self,
        pixels: Tensor,  # fp32 [B, 3, H, W], normalised
        src: Tensor,  # int64 [B, K]
        pos: Tensor,  # int64 [B, K]
        crops: Tensor,  # fp32 [U, 3, h, w], normalised
    ) -> tuple[Tensor, Tensor]:  # [B, 1 + K, D] and [U, 1 + l, D] after the final norm
        return self.trunk(pixels, src, pos), self._crops(crops)

    def _crops(self, crops: Tensor) -> Tensor:
        vit = self.trunk.vit
        patches = vit.patch_embed.proj(crops)
        side, grid = patches.shape[-1], round((vit.pos_embed.shape[1] - 1) ** 0.5)
        table = vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        places = F.interpolate(table, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(crops), -1, -1)
        return vit.norm(vit.blocks(torch.cat([first, patches.flatten(2).transpose(1, 2) + places], dim=1)))
