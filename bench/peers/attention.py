"""Attention from packed qkv as people write it."""

import torch.nn.functional as F
from torch import Tensor


def _heads_first(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def bmm(qkv: Tensor, num_heads: int) -> Tensor:
    """Two matrix products and a softmax, in the dtype of qkv."""
    q, k, v = _heads_first(qkv, num_heads)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def sdpa(qkv: Tensor, num_heads: int) -> Tensor:
    """scaled_dot_product_attention, as timm's Attention calls it."""
    q, k, v = _heads_first(qkv, num_heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
