"""Attention from packed qkv as people write it."""

import torch
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


def pass_per_length(function, qkv: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """qkv [T, 3 D] of mixed lengths, a call of function(qkv [B, N, 3 D]) for every length.

    runs: (sequences, tokens of each), in the order in which they lie: what training code with crops of two sizes does.
    """
    parts = qkv.split([sequences * tokens for sequences, tokens in runs])
    return torch.cat([function(part.unflatten(0, run)).flatten(0, 1) for part, run in zip(parts, runs)])
