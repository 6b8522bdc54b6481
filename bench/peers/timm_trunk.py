"""timm's ViT as people train it on sparse views: every patch embedded, the kept gathered, under autocast.

The patch projection and the sin-cos table are frozen and no gradient is asked of them, as in ours.
"""

import importlib
import types

import torch
from torch import Tensor, nn

from misplace.engine.models import MODEL_SIZES

from . import compiled
from .torchvision_import import import_torchvision

# name of a peer -> (attention, mode of torch.compile or None for eager, autocast to bf16)
FORMS = {
    "eager-fp32": ("sdpa", None, False),
    "eager-sdpa": ("sdpa", None, True),
    "eager-bmm": ("bmm", None, True),
    "compile-sdpa": ("sdpa", "default", True),
    "compile-bmm": ("bmm", "default", True),
    "compile-sdpa-max": ("sdpa", "max-autotune-no-cudagraphs", True),
    "compile-bmm-max": ("bmm", "max-autotune-no-cudagraphs", True),
    "compile-sdpa-graphs": ("sdpa", "reduce-overhead", True),
    "compile-bmm-graphs": ("bmm", "reduce-overhead", True),
}


def import_timm() -> types.ModuleType:
    """timm, which imports torchvision."""
    import_torchvision()
    return importlib.import_module("timm")


class TimmTrunk(nn.Module):
    """vit: timm's VisionTransformer without a classifier; attention: "sdpa" or "bmm", timm's two forms of it."""

    def __init__(self, model: str, *, image_size: int, patch_size: int, num_heads: int | None, attention: str):
        super().__init__()
        size = MODEL_SIZES[model]
        self.vit = import_timm().models.vision_transformer.VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=num_heads or size.num_heads,
        )
        self.vit.patch_embed.requires_grad_(False)
        self.vit.pos_embed.requires_grad_(False)
        for block in self.vit.blocks:
            block.attn.fused_attn = attention == "sdpa"

    def forward(
        self,
        pixels: Tensor,  # fp32 [B, 3, H, W], normalised
        src: Tensor,  # int64 [B, K]
        pos: Tensor,  # int64 [B, K]
    ) -> Tensor:  # [B, 1 + K, D] after the final norm
        vit = self.vit
        patches = vit.patch_embed(pixels)
        kept = patches.gather(1, src[..., None].expand(-1, -1, patches.shape[2]))
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        return vit.norm(vit.blocks(torch.cat([first, kept + vit.pos_embed[0, 1:][pos]], dim=1)))


def with_form(module: nn.Module, form: str, device: torch.device):
    """`module` as a function under the autocast and the torch.compile of one of FORMS."""
    _, mode, autocast = FORMS[form]

    def call(*inputs):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return module(*inputs)

    return call if mode is None else compiled(call, device, mode)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, H, W, C] -> fp32 [B, C, H, W]: given to the peers for nothing, as by a data loader."""
    mean, std = (torch.tensor(numbers, device=images.device).view(-1, 1, 1) for numbers in (mean, std))
    return ((images.permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()
