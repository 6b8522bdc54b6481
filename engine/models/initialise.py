"""Initial weights of a Vision Transformer; the draws come from torch's global generator."""

import math

import torch
from torch import nn

from .layers import Linear


@torch.no_grad()
def xavier_uniform(encoder: nn.Module) -> None:
    """Xavier-uniform, qkv as three matrices, zero biases, a class token near zero: MoCo v3's. [S]"""
    xavier_linears(encoder, qkv_parts=3)
    _xavier_patches(encoder)
    nn.init.normal_(encoder.cls_token, std=1e-6)


@torch.no_grad()
def xavier_whole_qkv(encoder: nn.Module) -> None:
    """Xavier-uniform, qkv as one matrix, zero biases, a class token of deviation 0.02: MAE's. [S]"""
    xavier_linears(encoder, qkv_parts=1)
    _xavier_patches(encoder)
    nn.init.normal_(encoder.cls_token, std=0.02)


@torch.no_grad()
def xavier_linears(module: nn.Module, qkv_parts: int) -> None:
    """Every Linear below `module`; qkv_parts: as how many matrices a qkv projection counts."""
    for name, layer in module.named_modules():
        if isinstance(layer, Linear):
            rows = layer.weight.shape[0] // (qkv_parts if name.endswith("qkv") else 1)
            bound = math.sqrt(6 / (rows + layer.weight.shape[1]))
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


def _xavier_patches(encoder: nn.Module) -> None:
    weight = encoder.patch_embed.proj.weight
    bound = math.sqrt(6 / (weight[0].numel() + weight.shape[0]))
    nn.init.uniform_(weight, -bound, bound)
    nn.init.zeros_(encoder.patch_embed.proj.bias)


@torch.no_grad()
def trunc_normal(encoder: nn.Module) -> None:
    """Truncated normal of deviation 0.02 and a convolution's own default for the patches, as timm and DeiT. [S]

    The blocks start near the identity.
    """
    for layer in encoder.modules():
        if isinstance(layer, Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    bound = 1 / math.sqrt(encoder.patch_embed.proj.weight[0].numel())
    nn.init.uniform_(encoder.patch_embed.proj.weight, -bound, bound)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    nn.init.trunc_normal_(encoder.cls_token, std=0.02)


@torch.no_grad()
def uniform_fan_in(encoder: nn.Module) -> None:
    """PyTorch's own default for every layer: weights and biases uniform within 1 / sqrt(inputs). [O]

    The blocks start farther from the identity than under trunc_normal, nearer than under xavier_uniform.
    """
    for layer in encoder.modules():
        if isinstance(layer, Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
    nn.init.trunc_normal_(encoder.cls_token, std=0.02)


@torch.no_grad()
def learned_positions(encoder: nn.Module) -> None:
    """A trained table of positions, truncated normal of deviation 0.02 as in DINO. [S]"""
    encoder.pos_embed.requires_grad_(True)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)


INITS = {
    "xavier_uniform": xavier_uniform,
    "xavier_whole_qkv": xavier_whole_qkv,
    "trunc_normal": trunc_normal,
    "uniform_fan_in": uniform_fan_in,
}
