"""attention by xformers' memory_efficient_attention, on a GPU."""

import functools

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_lengths = WeakTensorKeyDictionary()  # cu_seqlens -> its version, and the lengths


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Its layout is ours: [B, N, H, d]."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v, scale=scale)


def mixed_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """q, k, v [T, H, d] -> [T, H, d]. A mask is made from lengths on the host: a tensor of bounds that was not seen
    before, or was written to since, is read back once, and waits for the GPU to do so."""
    from xformers.ops import memory_efficient_attention

    if q.shape[0] == 0:
        return (q + k + v) * 0
    bias = block_diagonal(lengths_of(cu_seqlens), q.device)
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias, scale=scale)[0]


def lengths_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    """Of the sequences that are not empty."""
    version, lengths = _lengths.get(cu_seqlens, (None, ()))
    if version != cu_seqlens._version:
        lengths = tuple(filter(None, cu_seqlens.diff().tolist()))
        _lengths[cu_seqlens] = cu_seqlens._version, lengths
    return lengths


@functools.lru_cache(maxsize=64)
def block_diagonal(lengths: tuple[int, ...], device: torch.device):
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens(list(lengths), device=device)
