"""The jit functions of info_nce: rows normalised once, then a program per tile of queries, and per tile of keys."""

import os

import triton
import triton.language as tl

# the interpreter multiplies the bits of a bf16, not its value
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
SHORTEST = tl.constexpr(1e-12)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _multiply_add(a, b, sums):
    """sums + a . b in fp32: fp32 stays fp32 (no TF32), a product of two bf16 is exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """x in dtype, to the nearest; the interpreter's own conversion to bf16 cuts digits off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _load_rows(ptr, row, count, BLOCK: tl.constexpr):
    """[rows, BLOCK] of normalised rows, 0 past the last."""
    place = row.to(tl.int64)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.load(ptr + place, mask=(row < count)[:, None], other=0.0)


@triton.jit
def _partner(own, queries, PAIRS: tl.constexpr):
    """own + N / 2 mod N for pairs, where 0 <= own < N; the row itself otherwise."""
    if PAIRS:
        return tl.where(own < queries // 2, own + queries // 2, own - queries // 2)
    else:
        return own


@triton.jit
def _store_through_normalise(toward, rows_ptr, row_stride, inverse_ptr, out_ptr, row, count, WIDTH, BLOCK):
    """Stores the gradient of rows from that of the rows normalised."""
    column = tl.arange(0, BLOCK)
    mask = (row < count)[:, None] & (column < WIDTH)[None, :]
    inverse = tl.load(inverse_ptr + row, mask=row < count, other=0.0)
    x = tl.load(rows_ptr + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=mask, other=0.0)
    unit = x.to(tl.float32) * inverse[:, None]
    along = tl.where(inverse < 1.0 / SHORTEST, tl.sum(toward * unit, 1), 0.0)
    d = (toward - unit * along[:, None]) * inverse[:, None]
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(out_ptr + place, _rounded(d, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["queries", "keys"])
def normalise_kernel(
    query_ptr,  # [N, WIDTH], a row's elements side by side
    key_ptr,  # [M, WIDTH]
    query_stride,
    key_stride,
    units_ptr,  # [N + M, BLOCK], the normalised rows, then 0
    inverse_ptr,  # fp32 [N + M], one over their lengths
    queries,
    keys,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (column < WIDTH)[None, :]
    is_query, exists = (row < queries)[:, None], (row < queries + keys)[:, None]
    of_query = query_ptr + row.to(tl.int64)[:, None] * query_stride + column[None, :]
    of_key = key_ptr + (row - queries).to(tl.int64)[:, None] * key_stride + column[None, :]
    x = tl.load(of_query, mask=is_query & inside, other=0.0).to(tl.float32)
    x += tl.load(of_key, mask=exists & (row >= queries)[:, None] & inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), SHORTEST)
    tl.store(inverse_ptr + row, inverse, mask=row < queries + keys)
    place = row.to(tl.int64)[:, None] * BLOCK + column[None, :]
    tl.store(units_ptr + place, _rounded(x * inverse[:, None], units_ptr.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=["queries", "keys", "first_row"])
def queries_kernel(
    query_ptr,  # [N, WIDTH]
    query_stride,
    units_ptr,  # [N, BLOCK], normalised queries
    key_units_ptr,  # [M, BLOCK], normalised keys
    inverse_ptr,  # fp32 [N]
    losses_ptr,  # fp32 [N]
    log_sums_ptr,  # fp32 [N], log2 of a query's sum of powers
    slopes_ptr,  # fp32 [N], 1 - probability of the positive
    d_query_ptr,  # [N, WIDTH]; OWN_KEYS: fp32 [N, BLOCK], gradient of the normalised queries
    queries,
    keys,
    first_row,
    factor,  # log2(e) / temperature
    share,  # 1 / (temperature * N)
    PAIRS: tl.constexpr,
    GRADIENT: tl.constexpr,
    OWN_KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    query, column = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK)
    itself, positive = first_row + query, first_row + _partner(query, queries, PAIRS)
    q = _load_rows(units_ptr, query, queries, BLOCK)
    largest = tl.zeros([BLOCK_Q], tl.float32) - 2.0 * factor  # less than any
    total, score = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    toward = tl.zeros([BLOCK_Q, BLOCK], tl.float32)
    for first in range(0, keys, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        k = _load_rows(key_units_ptr, key, keys, BLOCK)
        scores = _multiply_add(q, tl.trans(k), tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)) * factor
        is_positive = key[None, :] == positive[:, None]
        score += tl.sum(tl.where(is_positive, scores, 0.0), 1)
        left_out = is_positive | (key >= keys)[None, :]
        if PAIRS:
            left_out = left_out | (key[None, :] == itself[:, None])
        scores = tl.where(left_out, float("-inf"), scores)
        larger = tl.maximum(largest, tl.max(scores, 1))
        correction = tl.exp2(largest - larger)
        powers = tl.exp2(scores - larger[:, None])
        total = total * correction + tl.sum(powers, 1)
        if GRADIENT:
            toward = _multiply_add(_rounded(powers, k.dtype), k, toward * correction[:, None])
        largest = larger

    larger = tl.maximum(largest, score)
    correction = tl.exp2(largest - larger)
    others = total * correction
    total = others + tl.exp2(score - larger)
    log_sum, slope = larger + tl.log2(total), others / total
    exists = query < queries
    tl.store(losses_ptr + query, (log_sum - score) * LN_2, mask=exists)
    tl.store(log_sums_ptr + query, log_sum, mask=exists)
    tl.store(slopes_ptr + query, slope, mask=exists)
    if GRADIENT:
        match = _load_rows(key_units_ptr, positive, keys, BLOCK).to(tl.float32)
        toward = (toward * (correction / total)[:, None] - match * slope[:, None]) * share
        if OWN_KEYS:
            place = query.to(tl.int64)[:, None] * BLOCK + column[None, :]
            tl.store(d_query_ptr + place, toward, mask=exists[:, None])
        else:
            _store_through_normalise(
                toward, query_ptr, query_stride, inverse_ptr, d_query_ptr, query, queries, WIDTH, BLOCK
            )


@triton.jit(do_not_specialize=["queries", "keys", "first_row"])
def keys_kernel(
    key_ptr,  # [M, WIDTH]
    key_stride,
    units_ptr,  # [N, BLOCK], normalised queries
    key_units_ptr,  # [M, BLOCK], normalised keys
    key_inverse_ptr,  # fp32 [M]
    log_sums_ptr,  # fp32 [N]
    slopes_ptr,  # fp32 [N]
    own_ptr,  # fp32 [N, BLOCK], OWN_KEYS: what queries_kernel stored
    d_key_ptr,  # [M, WIDTH]
    queries,
    keys,
    first_row,
    factor,
    share,
    PAIRS: tl.constexpr,
    OWN_KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    key = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    k = _load_rows(key_units_ptr, key, keys, BLOCK)
    toward = tl.zeros([BLOCK_K, BLOCK], tl.float32)
    for first in range(0, queries, BLOCK_Q):
        query = first + tl.arange(0, BLOCK_Q)
        q = _load_rows(units_ptr, query, queries, BLOCK)
        # infinity: a probability of 0 for the queries that there are not
        log_sum = tl.load(log_sums_ptr + query, mask=query < queries, other=float("inf"))
        # keys down, queries across: the product with the queries needs no transposition of what was just computed
        scores = _multiply_add(k, tl.trans(q), tl.zeros([BLOCK_K, BLOCK_Q], tl.float32)) * factor
        left_out = key[:, None] == (first_row + _partner(query, queries, PAIRS))[None, :]
        if PAIRS:
            left_out = left_out | (key[:, None] == (first_row + query)[None, :])
        powers = tl.where(left_out, 0.0, tl.exp2(scores - log_sum[None, :]))
        toward = _multiply_add(_rounded(powers, q.dtype), q, toward)

    own = key - first_row
    is_own = (own >= 0) & (own < queries)
    query = tl.where(is_own, _partner(own, queries, PAIRS), queries)
    match = _load_rows(units_ptr, query, queries, BLOCK).to(tl.float32)
    slope = tl.load(slopes_ptr + query, mask=is_own, other=0.0)
    toward = (toward - match * slope[:, None]) * share
    if OWN_KEYS:
        toward += _load_rows(own_ptr, key, keys, BLOCK)
    _store_through_normalise(toward, key_ptr, key_stride, key_inverse_ptr, d_key_ptr, key, keys, WIDTH, BLOCK)
