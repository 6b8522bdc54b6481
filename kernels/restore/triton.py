"""restore on the GPU: one kernel each way, and the addition of partial sums.

Formula         out[0] = tokens[0] + position[0]; out[1 + l] = (tokens[1 + k] where src[k] = l, else mask_token) +
                position[1 + l]. Back: d_tokens are rows of the gradient, d_mask_token the sum of its masked rows.
Bytes moved     forward 2 D (1 + K) bytes read and 2 D (1 + L) written an image in bf16, backward the other way about;
                position and src stay in the caches.
Operations      an addition a number, and K comparisons for each row of the output, which find its token.
Saved           src.
Against eager   no mask tokens are repeated, concatenated and gathered, no index is sorted, and the gradient of the mask
                token is not summed in bf16: three passes over [B, L, D] each way become one.

A program of the backward takes every P-th tile of rows of its columns, P fixed by the shape: a run repeats to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autograd import define, differentiable, empty_gradients, empty_output

ROWS, COLUMNS, NUM_WARPS = 8, 256, 4  # of a tile: 16 numbers a thread
MOST_PROGRAMS = 1056  # of the backward: 8 on each of 132 multiprocessors
TILES_A_PROGRAM = 4  # at least, where there are more: partial sums then cost a twentieth of the pass or less


@triton.jit
def _token_of_rows(src_ptr, row, inside, length, KEPT: tl.constexpr, LANES: tl.constexpr):
    """int64 [R]: the row of [B, 1 + K, D] that goes to each row of [B, 1 + L, D]; -1: none. And the place in 0..L."""
    image, place = row // length, row % length
    k = tl.arange(0, LANES)
    src = tl.load(src_ptr + image[:, None] * KEPT + k[None, :], mask=inside[:, None] & (k < KEPT)[None, :], other=-2)
    found = tl.max(tl.where(src.to(tl.int64) == place[:, None] - 1, k[None, :] + 1, 0), 1)
    is_token = (found > 0) | (place == 0)
    return tl.where(is_token, image * (1 + KEPT) + found, -1), place


@triton.jit
def forward_kernel(
    tokens_ptr,  # [B, 1 + K, D]
    src_ptr,  # int32 [B, K]
    mask_token_ptr,  # [D]
    position_ptr,  # [1 + L, D]
    out_ptr,  # [B, 1 + L, D]
    num_rows,  # B (1 + L)
    length,  # 1 + L
    width,
    KEPT: tl.constexpr,
    LANES: tl.constexpr,  # power of 2, >= KEPT
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token, place = _token_of_rows(src_ptr, row, row < num_rows, length, KEPT, LANES)
    mask = (row < num_rows)[:, None] & (column < width)[None, :]
    is_token = (token >= 0)[:, None]
    masked = tl.load(mask_token_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    x = tl.load(tokens_ptr + token[:, None] * width + column[None, :], mask=mask & is_token, other=0.0).to(tl.float32)
    position = tl.load(position_ptr + place[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
    out = tl.where(is_token, x, masked[None, :]) + position
    tl.store(out_ptr + row[:, None] * width + column[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    gradient_ptr,  # [B, 1 + L, D]
    src_ptr,  # int32 [B, K]
    d_tokens_ptr,  # [B, 1 + K, D]
    parts_ptr,  # fp32 [P, D]
    num_rows,  # B (1 + L)
    length,  # 1 + L
    width,
    KEPT: tl.constexpr,
    LANES: tl.constexpr,  # power of 2, >= KEPT
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, num_rows, num_programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        token, _ = _token_of_rows(src_ptr, row, row < num_rows, length, KEPT, LANES)
        mask = (row < num_rows)[:, None] & (column < width)[None, :]
        is_token = (token >= 0)[:, None]
        gradient = tl.load(gradient_ptr + row[:, None] * width + column[None, :], mask=mask, other=0.0)
        tl.store(d_tokens_ptr + token[:, None] * width + column[None, :], gradient, mask=mask & is_token)
        sums += tl.where(is_token, 0.0, gradient.to(tl.float32))
    tl.store(parts_ptr + program * width + column, tl.sum(sums, 0), mask=column < width)


def launch_sizes(kept: int) -> dict[str, int]:
    return dict(KEPT=kept, LANES=max(16, triton.next_power_of_2(kept)), ROWS=ROWS, BLOCK=COLUMNS, num_warps=NUM_WARPS)


_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "restore_triton")


def _launch(tokens, src, mask_token, position):
    out = empty_output(tokens, src, mask_token, position)
    batch, length, width = out.shape
    grid = triton.cdiv(batch * length, ROWS), triton.cdiv(width, COLUMNS)
    if batch:
        forward_kernel[grid](
            tokens.contiguous(), src.contiguous(), mask_token.contiguous(), position.contiguous(), out, batch * length,
            length, width, **launch_sizes(src.shape[1]),
        )  # fmt: skip
    return out


def _launch_backward(gradient, src, of_position):
    d_tokens, d_mask_token, d_position = empty_gradients(gradient, src, of_position)
    batch, length, width = gradient.shape
    down, across = triton.cdiv(batch * length, ROWS), triton.cdiv(width, COLUMNS)
    programs = min(triton.cdiv(MOST_PROGRAMS, across), triton.cdiv(down, TILES_A_PROGRAM))
    parts = d_mask_token.new_empty((programs, width))
    if batch:
        gradient = gradient.contiguous()
        backward_kernel[(programs, across)](
            gradient, src.contiguous(), d_tokens, parts, batch * length, length, width, **launch_sizes(src.shape[1]),
        )  # fmt: skip
    torch.sum(parts, 0, out=d_mask_token)
    if of_position:
        torch.sum(gradient, 0, dtype=d_position.dtype, out=d_position)
    return d_tokens, d_mask_token, d_position


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("restore_triton", _launch, _key)
    _library.impl("restore_triton_backward", _launch_backward, _key)


def restore(tokens: Tensor, src: Tensor, mask_token: Tensor, position: Tensor) -> Tensor:
    ops = torch.ops.misplace
    return differentiable((ops.restore_triton, ops.restore_triton_backward), tokens, src, mask_token, position)
