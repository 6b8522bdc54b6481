"""attention on the GPU for at most 256 keys: a whole sequence and head in one program, forward and backward.

Formula         reference.py. Keys and values are read once, every score of a block of queries is held at once: no
                softmax is corrected after the fact. The backward makes the probabilities again from the log of
                their sum and has dq, dk and dv in one program: no atomics, no second pass, a run repeats to the bit.
Bytes moved     per token and head of d numbers: 4 d forward, 7 d backward (q, k, v, dout in, three gradients out; the
                output is not read: sum of p * dp over all keys is the row's dot product of dout and out), and 4
                bytes of log-sum each. q, k and v are read where a packed qkv has them, and their gradients are
                written there: no copy.
Operations      4 N d forward and 10 N d backward per token and head, on tensor cores; at N = 50 bound by memory.
Saved           the inputs, fp32 [B, H, N].
Against eager   scores and probabilities never reach memory; against kernels in tiles of 128 x 128, a tile is the
                power of two that holds N: at 50 tokens 61 % of it is of use instead of 15 %.
Mixed lengths   cu_seqlens are read by the programs; a short sequence among long ones takes a smaller tile.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import operators
from .triton_kernels import backward_kernel, forward_kernel

SMALLEST_TILE = 32


class LaunchSizes(NamedTuple):
    """Queries and keys of a tile."""

    block_q: int
    block_k: int
    num_warps: int


# by keys in a tile: queries, warps. Chosen by the registers that compilers report, not by a clock. bf16 spills nothing
# on sm_90 and 100; on sm_80 the backward of 256 keys spills some 200 bytes a thread. fp32 is multiplied without tensor
# cores, in smaller tiles, and spills some with more than 64 keys.
FORWARD = {32: (32, 4), 64: (64, 4), 128: (32, 4), 256: (16, 4)}
BACKWARD = {32: (32, 4), 64: (32, 4), 128: (32, 8), 256: (16, 8)}
FORWARD_FP32 = {32: (16, 4), 64: (16, 4), 128: (16, 8), 256: (16, 8)}
BACKWARD_FP32 = {32: (16, 4), 64: (16, 8), 128: (16, 8), 256: (16, 16)}


def launch_sizes(keys: int, dtype: torch.dtype, backward: bool) -> LaunchSizes:
    block_k = max(SMALLEST_TILE, triton.next_power_of_2(keys))
    if dtype == torch.float32:
        table = BACKWARD_FP32 if backward else FORWARD_FP32
    else:
        table = BACKWARD if backward else FORWARD
    block_q, num_warps = table[block_k]
    return LaunchSizes(block_q, block_k, num_warps)


def levels(block_k: int, mixed: bool) -> int:
    """Tiles to choose from: for one length one, for mixed lengths down to the smallest."""
    return (block_k // SMALLEST_TILE).bit_length() if mixed else 1


def _statistics(shape, mixed: bool) -> tuple[int, ...]:
    """[B, H, N]; of mixed lengths [H, T]."""
    return (shape[1], shape[0]) if mixed else (shape[0], shape[2], shape[1])


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of image, token and head."""
    return (0, *x.stride()[:2]) if x.dim() == 3 else x.stride()[:3]


def _grid(q: Tensor, cu_seqlens: Tensor | None) -> tuple[int]:
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    return (sequences * q.shape[-2],)


def _launch_forward(q, k, v, out, log_sum, scale, cu_seqlens, max_seqlen) -> None:
    if out.numel() == 0:
        return
    q, k, v = (_readable(x) for x in (q, k, v))
    mixed, keys = cu_seqlens is not None, k.shape[-3]
    sizes = launch_sizes(max_seqlen if mixed else keys, q.dtype, backward=False)
    forward_kernel[_grid(q, cu_seqlens)](
        q, k, v, out, log_sum, cu_seqlens if mixed else log_sum, q.shape[-2], q.shape[-3], keys,
        scale * math.log2(math.e), *_strides(q), *_strides(k), *_strides(v),
        KEEP=log_sum.numel() > 0, MIXED=mixed, DIM=q.shape[-1], BLOCK_Q=sizes.block_q, BLOCK_K=sizes.block_k,
        LEVELS=levels(sizes.block_k, mixed), num_warps=sizes.num_warps,
    )  # fmt: skip


def _launch_backward(dout, q, k, v, log_sum, gradients, scale, cu_seqlens, max_seqlen) -> None:
    q, k, v = (_readable(x) for x in (q, k, v))
    mixed, keys, d_token = cu_seqlens is not None, k.shape[-3], gradients[0].stride(-3)
    sizes = launch_sizes(max_seqlen if mixed else keys, q.dtype, backward=True)
    backward_kernel[_grid(q, cu_seqlens)](
        dout.contiguous(), q, k, v, log_sum, cu_seqlens if mixed else log_sum, *gradients,
        q.shape[-2], q.shape[-3], keys, scale, scale * math.log2(math.e),
        *_strides(q), *_strides(k), *_strides(v), d_token,
        MIXED=mixed, DIM=q.shape[-1], BLOCK_Q=sizes.block_q, BLOCK_K=sizes.block_k,
        LEVELS=levels(sizes.block_k, mixed), num_warps=sizes.num_warps,
    )  # fmt: skip


def _forward(q, k, v, scale, for_backward, max_seqlen, cu_seqlens=None):
    out = q.new_empty(q.shape)
    kept = _statistics(q.shape, cu_seqlens is not None) if for_backward else (0,)
    log_sum = q.new_empty(kept, dtype=torch.float32)
    _launch_forward(q, k, v, out, log_sum, scale, cu_seqlens, max_seqlen)
    return out, log_sum


def _backward(dout, q, k, v, log_sum, scale, max_seqlen, cu_seqlens=None):
    if q.numel() == 0:
        return tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    gradients = [x.new_empty(x.shape) for x in (q, k, v)]
    _launch_backward(dout, q, k, v, log_sum, gradients, scale, cu_seqlens, max_seqlen)
    return tuple(gradients)


def _unpack(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    return qkv.unflatten(-1, (3, num_heads, qkv.shape[-1] // (3 * num_heads))).unbind(-3)


def _packed_forward(qkv, num_heads, scale, for_backward, max_seqlen, cu_seqlens=None):
    out, log_sum = _forward(*_unpack(qkv, num_heads), scale, for_backward, max_seqlen, cu_seqlens)
    return out.flatten(-2), log_sum


def _packed_backward(dout, qkv, log_sum, num_heads, scale, max_seqlen, cu_seqlens=None):
    dqkv = qkv.new_empty(qkv.shape)
    if qkv.numel():
        gradients = _unpack(dqkv, num_heads)
        # dout is read as [..., H, d], which it is in memory
        _launch_backward(dout, *_unpack(qkv, num_heads), log_sum, gradients, scale, cu_seqlens, max_seqlen)
    return dqkv


_library = torch.library.Library("misplace", "FRAGMENT")
operators.define(_library, "attention_triton", "SymInt max_seqlen", _statistics)
for _device in ("CUDA", "CPU"):  # CPU: the interpreter; api.py refuses anything else there
    _library.impl("attention_triton", _forward, _device)
    _library.impl("attention_triton_backward", _backward, _device)
    _library.impl("attention_triton_packed", _packed_forward, _device)
    _library.impl("attention_triton_packed_backward", _packed_backward, _device)


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor | None, max_seqlen: int | None
) -> Tensor:
    """q [B, N, H, d], k and v [B, M, H, d] -> [B, N, H, d]; with cu_seqlens all three [T, H, d].

    The limits are those of limits.py: api.py has asked it.
    """
    keys = k.shape[1] if cu_seqlens is None else max_seqlen
    return operators.separate(torch.ops.misplace.attention_triton, q, k, v, scale, keys, cu_seqlens)


def attention_packed(
    qkv: Tensor, num_heads: int, scale: float, cu_seqlens: Tensor | None, max_seqlen: int | None
) -> Tensor:
    """[B, N, 3 D] -> [B, N, D]; with cu_seqlens [T, 3 D] -> [T, D]."""
    keys = qkv.shape[-2] if cu_seqlens is None else max_seqlen
    return operators.packed(torch.ops.misplace.attention_triton_packed, qkv, num_heads, scale, keys, cu_seqlens)
