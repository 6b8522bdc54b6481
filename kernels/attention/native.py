"""The registered ops misplace::attention and misplace::attention_packed; misplace.kernels._C holds their kernels.

Saved for the backward: the inputs, and two fp32 numbers a query and head (csrc/attention.h). Probabilities are made
again, to the bit. isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
cu_seqlens are read, and checked, where the kernels are.
"""

import torch
from torch import Tensor

from . import operators

DTYPES = (torch.float32, torch.bfloat16)


def _statistics(shape, mixed: bool) -> tuple[int, ...]:
    """[B, H, 2, N]; of mixed lengths flat, [H, 2, length] one sequence after another."""
    if mixed:
        tokens, heads, _ = shape
        return (2 * tokens * heads,)
    batch, queries, heads, _ = shape
    return (batch, heads, 2, queries)


_library = torch.library.Library("misplace", "FRAGMENT")
operators.define(_library, "attention", "str isa", _statistics)


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, isa: str = "", cu_seqlens: Tensor | None = None
) -> Tensor:
    """q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d]; with cu_seqlens all three [T, H, d]."""
    return operators.separate(torch.ops.misplace.attention, q, k, v, scale, isa, cu_seqlens)


def attention_packed(
    qkv: Tensor, num_heads: int, scale: float, *, isa: str = "", cu_seqlens: Tensor | None = None
) -> Tensor:
    """[B, N, 3 D] -> [B, N, D]; with cu_seqlens [T, 3 D] -> [T, D]."""
    return operators.packed(torch.ops.misplace.attention_packed, qkv, num_heads, scale, isa, cu_seqlens)
