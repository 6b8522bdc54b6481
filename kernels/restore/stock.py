"""restore by PyTorch's own operators: only the kept rows are computed, the others are copies of one small table."""

import torch
from torch import Tensor

from .autograd import differentiable, sum_dtype
from .dropped import dropped_patches


def restore(tokens: Tensor, src: Tensor, mask_token: Tensor, position: Tensor) -> Tensor:
    return differentiable((_forward, _backward), tokens, src, mask_token, position)


def _rows(patches: Tensor, width: int) -> Tensor:
    """Rows 1 + patch of a sequence, as gather and scatter want them: int64 [B, N, D]."""
    return (1 + patches.long())[..., None].expand(-1, -1, width)


def _forward(tokens, src, mask_token, position):
    wide = sum_dtype(tokens)
    position = position.to(wide)
    first, kept = tokens[:, :1] + position[0], tokens[:, 1:] + position[1 + src.long()]
    out = (mask_token.to(wide) + position).to(tokens.dtype).repeat(len(tokens), 1, 1)
    out[:, :1] = first
    return out.scatter_(1, _rows(src, tokens.shape[2]), kept.to(tokens.dtype))


def _backward(gradient, src, of_position):
    _, length, width = gradient.shape
    wide = sum_dtype(gradient)
    d_tokens = torch.cat([gradient[:, :1], gradient.gather(1, _rows(src, width))], dim=1)
    masked = gradient.gather(1, _rows(dropped_patches(src, length - 1), width))
    d_position = gradient.sum(0, dtype=wide) if of_position else gradient.new_empty(0, dtype=wide)
    return d_tokens, masked.sum((0, 1), dtype=wide), d_position
