"""The registered ops misplace::attention and misplace::attention_packed; misplace.kernels._C holds their kernels.

Saved for the backward: the inputs, and two fp32 numbers a query and head (csrc/attention.h). Probabilities are made
again, to the bit. isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)

_library = torch.library.Library("misplace", "FRAGMENT")
for _schema in (
    "attention(Tensor q, Tensor k, Tensor v, float scale, bool for_backward, str isa) "
    "-> (Tensor out, Tensor statistics)",
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor statistics, float scale, str isa) "
    "-> (Tensor dq, Tensor dk, Tensor dv)",
    "attention_packed(Tensor qkv, int num_heads, float scale, bool for_backward, str isa) "
    "-> (Tensor out, Tensor statistics)",
    "attention_packed_backward(Tensor dout, Tensor qkv, Tensor statistics, int num_heads, float scale, str isa) "
    "-> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _statistics(like: Tensor, batch: int, heads: int, queries: int, for_backward: bool) -> Tensor:
    return like.new_empty((batch, heads, 2, queries if for_backward else 0), dtype=torch.float32)


@torch.library.register_fake("misplace::attention", lib=_library)
def _(q, k, v, scale, for_backward, isa):
    batch, queries, heads, _ = q.shape
    return q.new_empty(q.shape), _statistics(q, batch, heads, queries, for_backward)


@torch.library.register_fake("misplace::attention_backward", lib=_library)
def _(dout, q, k, v, statistics, scale, isa):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.register_fake("misplace::attention_packed", lib=_library)
def _(qkv, num_heads, scale, for_backward, isa):
    batch, tokens, width = qkv.shape
    return qkv.new_empty((batch, tokens, width // 3)), _statistics(qkv, batch, num_heads, tokens, for_backward)


@torch.library.register_fake("misplace::attention_packed_backward", lib=_library)
def _(dout, qkv, statistics, num_heads, scale, isa):
    return qkv.new_empty(qkv.shape)


def _save(ctx, inputs, output):
    q, k, v, ctx.scale, for_backward, ctx.isa = inputs
    _require_for_backward(for_backward)
    ctx.save_for_backward(q, k, v, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dout, _):
    gradients = torch.ops.misplace.attention_backward(dout, *ctx.saved_tensors, ctx.scale, ctx.isa)
    return *gradients, None, None, None


def _save_packed(ctx, inputs, output):
    qkv, ctx.num_heads, ctx.scale, for_backward, ctx.isa = inputs
    _require_for_backward(for_backward)
    ctx.save_for_backward(qkv, output[1])
    ctx.mark_non_differentiable(output[1])


def _packed_backward(ctx, dout, _):
    dqkv = torch.ops.misplace.attention_packed_backward(dout, *ctx.saved_tensors, ctx.num_heads, ctx.scale, ctx.isa)
    return dqkv, None, None, None, None


def _require_for_backward(for_backward: bool) -> None:
    if not for_backward:
        raise ValueError("attention: for_backward is False, and an input requires a gradient")


torch.library.register_autograd("misplace::attention", _backward, setup_context=_save, lib=_library)
torch.library.register_autograd(
    "misplace::attention_packed", _packed_backward, setup_context=_save_packed, lib=_library
)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, *, isa: str = "") -> Tensor:
    """q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d]."""
    for_backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return torch.ops.misplace.attention(q, k, v, scale, for_backward, isa)[0]


def attention_packed(qkv: Tensor, num_heads: int, scale: float, *, isa: str = "") -> Tensor:
    """[B, N, 3 D] -> [B, N, D]."""
    for_backward = torch.is_grad_enabled() and qkv.requires_grad
    return torch.ops.misplace.attention_packed(qkv, num_heads, scale, for_backward, isa)[0]
