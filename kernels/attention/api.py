"""attention: softmax attention over short sequences, all tokens of a sequence to all of its tokens."""

import itertools

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose
from . import native, reference, sdpa, stock
from .choice import SUPPORTED, attention_choice
from .limits import refusal

OP = "attention"


def attention(
    qkv: Tensor,  # [B, N, 3 * D], or q [B, N, H, D / H] when k and v are given; with cu_seqlens [T, ...]
    k: Tensor | None = None,  # [B, M, H, D / H]; with cu_seqlens [T, H, D / H]
    v: Tensor | None = None,  # as k
    *,
    num_heads: int | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,  # int32 [S + 1]
    max_seqlen: int | None = None,
    impl: Impl | str = "auto",
) -> Tensor:  # [B, N, D] from packed qkv, [B, N, H, D / H] from q, k, v; dtype of the input
    """softmax(q k^T * scale) v for every image and head, without a mask.

    Packed: the last dimension is q, k, v, each as num_heads heads, as timm's qkv projection gives it.
    Separate: q, k and v have the heads as a dimension of their own, and keys may be of another number than
    queries. scale: 1 / sqrt(head dim) when None. Differentiable in every input.
    cu_seqlens: sequences of mixed lengths lie one behind the other in one dimension of T tokens, sequence s from
    cu_seqlens[s] to cu_seqlens[s + 1]; each attends to itself alone, and may be empty. max_seqlen is the longest
    length or more; a CPU reads it from cu_seqlens where it is None, a GPU would have to stop for that and needs
    it, as it needs cu_seqlens to be right: rows of a sequence that is longer are undefined there.
    impl="auto" is what attention_choice says, from a measured table. A named one that does not take the input
    (limits.py: triton has at most 256 keys, native no fp64, ...) is an error, never another one.
    ValueError for a shape, a device, no keys, a num_heads that does not divide D or contradicts q, or wrong
    cu_seqlens; TypeError for dtypes.
    """
    if (k is None) != (v is None):
        raise ValueError("attention: give k and v together, or neither with packed qkv")
    packed, mixed = k is None, cu_seqlens is not None
    q, k, v = _split(qkv, num_heads, mixed) if packed else _separate(qkv, k, v, num_heads, mixed)
    if mixed:
        max_seqlen = _longest(cu_seqlens, max_seqlen, q)
    elif max_seqlen is not None:
        raise ValueError("attention: max_seqlen goes with cu_seqlens")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _choose(impl, q, max_seqlen if mixed else k.shape[1], cu_seqlens)
    if packed and chosen is Impl.NATIVE:
        return native.attention_packed(qkv, num_heads, scale, cu_seqlens=cu_seqlens)
    if packed and chosen is Impl.TRITON:
        return _triton().attention_packed(qkv, num_heads, scale, cu_seqlens, max_seqlen)
    out = _run(chosen, q, k, v, scale, cu_seqlens, max_seqlen)
    return out.flatten(-2) if packed else out


def _run(chosen: Impl, q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens, max_seqlen) -> Tensor:
    mixed = () if cu_seqlens is None else (cu_seqlens, max_seqlen)
    match chosen:
        case Impl.NATIVE:
            return native.attention(q, k, v, scale, cu_seqlens=cu_seqlens)
        case Impl.TRITON:
            return _triton().attention(q, k, v, scale, cu_seqlens, max_seqlen)
        case Impl.XFORMERS:
            from . import xformers as module
        case Impl.TORCH:
            module = stock
        case Impl.REFERENCE:
            module = reference
        case _:
            return sdpa.mixed_attention(q, k, v, scale, *mixed) if mixed else sdpa.attention(q, k, v, scale, chosen)
    return module.mixed_attention(q, k, v, scale, *mixed) if mixed else module.attention(q, k, v, scale)


def _triton():
    from . import triton

    return triton


def _choose(impl: Impl | str, q: Tensor, keys: int, cu_seqlens: Tensor | None) -> Impl:
    """keys: of the longest sequence."""
    mixed, (heads, head_dim) = cu_seqlens is not None, q.shape[-2:]
    if impl == "auto":
        with_gradient = torch.is_grad_enabled() and q.requires_grad
        rows = heads * (cu_seqlens.shape[0] - 1 if mixed else q.shape[0])
        return attention_choice(q.device, q.dtype, keys, head_dim, rows, with_gradient=with_gradient, mixed=mixed)
    chosen = choose(OP, impl, q.device, SUPPORTED)
    if error := refusal(chosen, q.device.type, q.dtype, head_dim, keys, mixed):
        raise error
    return chosen


def _split(qkv: Tensor, num_heads: int | None, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v, each [B, N, H, D / H], or [T, H, D / H]."""
    require_dims(OP, "qkv", qkv, 2 if mixed else 3, "[T, 3 * D]" if mixed else "[B, N, 3 * D]")
    require_floating(OP, qkv=qkv)
    if num_heads is None or num_heads < 1:
        raise ValueError(f"attention: packed qkv needs num_heads >= 1, not {num_heads}")
    width = qkv.shape[-1]
    if width == 0 or width % (3 * num_heads):
        raise ValueError(f"attention: qkv has width {width}, not 3 * {num_heads} heads * head dim")
    if not mixed and qkv.shape[1] == 0:
        raise ValueError(f"attention: no tokens to attend to, qkv is {list(qkv.shape)}")
    return qkv.unflatten(-1, (3, num_heads, width // (3 * num_heads))).unbind(-3)


def _separate(q: Tensor, k: Tensor, v: Tensor, num_heads: int | None, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    meaning = "[T, H, D / H]" if mixed else "[B, M, H, D / H]"
    require_dims(OP, "q", q, 3 if mixed else 4, meaning.replace("M", "N"))
    require_dims(OP, "k", k, 3 if mixed else 4, meaning)
    require_floating(OP, q=q)
    heads, head_dim = q.shape[-2:]
    if head_dim == 0 or heads == 0 or (not mixed and k.shape[1] == 0):
        raise ValueError(f"attention: nothing to attend to, q is {list(q.shape)} and k is {list(k.shape)}")
    if num_heads not in (None, heads):
        raise ValueError(f"attention: num_heads is {num_heads}, q has {heads} heads")
    keys = q.shape if mixed else (q.shape[0], k.shape[1], heads, head_dim)
    for name, tensor in (("k", k), ("v", v)):
        require_shape(OP, name, tensor, keys, meaning)
        require_dtype(OP, name, tensor, q.dtype)
    require_device(OP, q.device, k=k, v=v)
    return q, k, v


def _longest(cu_seqlens: Tensor, max_seqlen: int | None, q: Tensor) -> int:
    """max_seqlen, checked against the bounds where reading them costs nothing: on a CPU, and not while traced."""
    require_dims(OP, "cu_seqlens", cu_seqlens, 1, "[S + 1]")
    require_dtype(OP, "cu_seqlens", cu_seqlens, torch.int32)
    require_device(OP, q.device, cu_seqlens=cu_seqlens)
    if cu_seqlens.numel() == 0:
        raise ValueError("attention: cu_seqlens must be [S + 1], not [0]")
    if max_seqlen is not None and max_seqlen < 0:
        raise ValueError(f"attention: max_seqlen is {max_seqlen}")
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        if max_seqlen is None:
            raise ValueError(f"attention: on {q.device.type}, or under torch.compile, cu_seqlens need max_seqlen")
        return max_seqlen
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != q.shape[0]:
        ends = f"{bounds[0]} to {bounds[-1]}, not from 0 to the {q.shape[0]} tokens"
        raise ValueError(f"attention: cu_seqlens go from {ends}")
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    if min(lengths, default=0) < 0:
        raise ValueError("attention: cu_seqlens decrease")
    longest = max(lengths, default=0)
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"attention: max_seqlen is {max_seqlen}, a sequence has {longest} tokens")
    return longest if max_seqlen is None else max_seqlen
