"""The jit functions of attention: one program per sequence and head, every key of the sequence in one tile."""

import os

import triton
import triton.language as tl

# the interpreter multiplies the bits of a bf16, not its value
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _multiply(a, b):
    """a . b in fp32: fp32 stays fp32 (no TF32), a product of two bf16 is exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _multiply_add(a, b, sums):
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _load_rows(ptr, row, stride, count, DIM: tl.constexpr):
    """[rows, DIM], 0 past the last."""
    place = row[:, None] * stride + tl.arange(0, DIM)[None, :]
    return tl.load(ptr + place, mask=(row < count)[:, None], other=0.0)


@triton.jit
def _store_rows(ptr, row, stride, count, values, DIM: tl.constexpr):
    place = row[:, None] * stride + tl.arange(0, DIM)[None, :]
    tl.store(ptr + place, values.to(ptr.dtype.element_ty), mask=(row < count)[:, None])


@triton.jit
def _forward_head(
    q_ptr, k_ptr, v_ptr, out_ptr, log_sum_ptr, queries, keys, scale, q_token, k_token, v_token, out_token,
    KEEP: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    key = tl.arange(0, BLOCK_K)
    k = _load_rows(k_ptr, key, k_token, keys, DIM)
    v = _load_rows(v_ptr, key, v_token, keys, DIM)
    for first in tl.range(0, queries, BLOCK_Q, num_stages=2 if BLOCK_K > 64 else 1):
        query = first + tl.arange(0, BLOCK_Q)
        q = _load_rows(q_ptr, query, q_token, queries, DIM)
        scores = _multiply(q, tl.trans(k)) * scale
        scores = tl.where((key < keys)[None, :], scores, float("-inf"))
        largest = tl.max(scores, 1)
        powers = tl.exp2(scores - largest[:, None])
        total = tl.sum(powers, 1)
        out = _multiply(powers.to(v.dtype), v) / total[:, None]
        _store_rows(out_ptr, query, out_token, queries, out, DIM)
        if KEEP:
            tl.store(log_sum_ptr + query, largest + tl.log2(total), mask=query < queries)


@triton.jit(do_not_specialize=["queries", "keys"])
def forward_kernel(
    q_ptr,  # [B, N, H, DIM], elements of a head side by side; mixed lengths: [T, H, DIM]
    k_ptr,  # [B, M, H, DIM]
    v_ptr,  # as k
    out_ptr,  # as q, contiguous
    log_sum_ptr,  # fp32 [B, H, N], log2 of a query's sum of 2^score; mixed lengths: [H, T]
    cu_seqlens_ptr,  # [S + 1], or anything
    heads,
    queries,  # N, or T
    keys,  # M, or T
    scale,  # times log2(e): exponentials are powers of 2
    q_image, q_token, q_head,
    k_image, k_token, k_head,
    v_image, v_token, v_head,
    KEEP: tl.constexpr,  # log_sum_ptr is written
    MIXED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LEVELS: tl.constexpr,  # tiles of keys: BLOCK_K, halved LEVELS - 1 times; a sequence takes the least that holds it
):  # fmt: skip
    sequence, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    out_token = heads * DIM
    if MIXED:
        first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        log_sum_ptr += head * queries + first
        queries = tl.load(cu_seqlens_ptr + sequence + 1) - first.to(tl.int32)
        keys = queries
        q, k, v, out = first * q_token, first * k_token, first * v_token, first * out_token
    else:
        log_sum_ptr += (sequence * heads + head) * queries
        q, k, v, out = sequence * q_image, sequence * k_image, sequence * v_image, sequence * queries * out_token
    q_ptr, k_ptr, v_ptr = q_ptr + q + head * q_head, k_ptr + k + head * k_head, v_ptr + v + head * v_head
    out_ptr += out + head * DIM
    for level in tl.static_range(LEVELS):
        if (keys <= BLOCK_K >> level) & ((keys > BLOCK_K >> (level + 1)) | (level == LEVELS - 1)):
            _forward_head(
                q_ptr, k_ptr, v_ptr, out_ptr, log_sum_ptr, queries, keys, scale, q_token, k_token, v_token, out_token,
                KEEP, DIM, BLOCK_Q, BLOCK_K >> level,
            )  # fmt: skip


@triton.jit
def _backward_head(
    dout_ptr, q_ptr, k_ptr, v_ptr, log_sum_ptr, dq_ptr, dk_ptr, dv_ptr, queries, keys, scale, log2_scale,
    dout_token, q_token, k_token, v_token, d_token,
    DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    key = tl.arange(0, BLOCK_K)
    k = _load_rows(k_ptr, key, k_token, keys, DIM)
    v = _load_rows(v_ptr, key, v_token, keys, DIM)
    dk, dv = tl.zeros([BLOCK_K, DIM], tl.float32), tl.zeros([BLOCK_K, DIM], tl.float32)
    for first in tl.range(0, queries, BLOCK_Q, num_stages=2 if BLOCK_Q < BLOCK_K else 1):
        query = first + tl.arange(0, BLOCK_Q)
        q = _load_rows(q_ptr, query, q_token, queries, DIM)
        dout = _load_rows(dout_ptr, query, dout_token, queries, DIM)
        # infinity: a probability of 0 for the queries that there are not
        log_sum = tl.load(log_sum_ptr + query, mask=query < queries, other=float("inf"))
        # keys down, queries across: the products with dout and q need no transposition of what was just computed
        p = tl.exp2(_multiply(k, tl.trans(q)) * log2_scale - log_sum[None, :])
        p = tl.where((key < keys)[:, None], p, 0.0)
        dp = _multiply(v, tl.trans(dout))
        ds = p * (dp - tl.sum(p * dp, 0)[None, :])
        dv = _multiply_add(p.to(dout.dtype), dout, dv)
        ds = ds.to(q.dtype)
        dk = _multiply_add(ds, q, dk)
        _store_rows(dq_ptr, query, d_token, queries, _multiply(tl.trans(ds), k) * scale, DIM)
    _store_rows(dk_ptr, key, d_token, keys, dk * scale, DIM)
    _store_rows(dv_ptr, key, d_token, keys, dv, DIM)


@triton.jit(do_not_specialize=["queries", "keys"])
def backward_kernel(
    dout_ptr,  # [B, N, H, DIM], contiguous
    q_ptr, k_ptr, v_ptr, log_sum_ptr, cu_seqlens_ptr,  # as in forward_kernel
    dq_ptr, dk_ptr, dv_ptr,  # elements of a head, and heads, side by side; tokens d_token apart
    heads, queries, keys,
    scale,
    log2_scale,  # scale, times log2(e)
    q_image, q_token, q_head,
    k_image, k_token, k_head,
    v_image, v_token, v_head,
    d_token,
    MIXED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LEVELS: tl.constexpr,  # tiles of keys: BLOCK_K, halved LEVELS - 1 times; a sequence takes the least that holds it
):  # fmt: skip
    sequence, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    dout_token = heads * DIM
    if MIXED:
        first = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        log_sum_ptr += head * queries + first
        queries = tl.load(cu_seqlens_ptr + sequence + 1) - first.to(tl.int32)
        keys = queries
        q, k, v, dout = first * q_token, first * k_token, first * v_token, first * dout_token
        dq, dk = first * d_token, first * d_token
    else:
        log_sum_ptr += (sequence * heads + head) * queries
        q, k, v, dout = sequence * q_image, sequence * k_image, sequence * v_image, sequence * queries * dout_token
        dq, dk = sequence * queries * d_token, sequence * keys * d_token
    q_ptr, k_ptr, v_ptr = q_ptr + q + head * q_head, k_ptr + k + head * k_head, v_ptr + v + head * v_head
    dout_ptr += dout + head * DIM
    dq_ptr, dk_ptr, dv_ptr = dq_ptr + dq + head * DIM, dk_ptr + dk + head * DIM, dv_ptr + dk + head * DIM
    for level in tl.static_range(LEVELS):
        if (keys <= BLOCK_K >> level) & ((keys > BLOCK_K >> (level + 1)) | (level == LEVELS - 1)):
            _backward_head(
                dout_ptr, q_ptr, k_ptr, v_ptr, log_sum_ptr, dq_ptr, dk_ptr, dv_ptr, queries, keys, scale, log2_scale,
                dout_token, q_token, k_token, v_token, d_token, DIM, BLOCK_Q, BLOCK_K >> level,
            )  # fmt: skip
