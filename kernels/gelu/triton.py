"""gelu on the GPU: one kernel each way, and with a bias the addition of partial sums.

Formula         y = z Phi(z) with z = x + bias; dx = dy (Phi(z) + z phi(z)), dbias = sum(dx) over rows.
Bytes moved     an element is read and written once forward, read twice (x, dy) and written once backward: 10 bytes in
                bf16. With a bias a program of the backward adds 4 bytes for each of its columns.
Operations      about 20 an element each way, on vectors: bound by memory.
Saved           x before the bias, and the bias: what the Linear before it wrote, no activation beside it.
Against eager   the sum with the bias (4 bytes more forward where the Linear's product does not do it) and the pass
                that sums its gradient (2 bytes an element backward) go.

A program takes every P-th tile of rows of its columns, P fixed by the shape: a run repeats to the bit. Without a bias
memory is one stretch, in rows of COLUMNS.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autograd import define, differentiable

ROWS, COLUMNS, NUM_WARPS = 8, 256, 4  # of a tile: 16 numbers a thread
MOST_PROGRAMS = 1056  # of the backward with a bias: 8 on each of 132 multiprocessors
TILES_A_PROGRAM = 4  # at least, where there are more: partial sums then cost a twentieth of the pass or less


@triton.jit
def _tile(first, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Places of a tile's elements, [ROWS, BLOCK], and its columns."""
    row = first + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return row.to(tl.int64)[:, None] * WIDTH + column[None, :], column


@triton.jit
def _distribution(z):
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def forward_kernel(
    x_ptr,  # [size]
    bias_ptr,  # [WIDTH]
    y_ptr,  # [size]
    size,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at, column = _tile(tl.program_id(0) * ROWS, WIDTH, ROWS, BLOCK)
    inside = column < WIDTH
    mask = inside[None, :] & (at < size)
    z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + at, (z * _distribution(z)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr,  # [size]
    x_ptr,  # [size]
    bias_ptr,  # [WIDTH]
    dx_ptr,  # [size]
    parts_ptr,  # fp32 [P, WIDTH]
    size,
    num_rows,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, num_rows, num_programs * ROWS):
        at, _ = _tile(first, WIDTH, ROWS, BLOCK)
        mask = inside[None, :] & (at < size)
        z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            z += bias[None, :]
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dx = dy * (_distribution(z) + z * density)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        dbias += dx
    if HAS_BIAS:
        tl.store(parts_ptr + program * WIDTH + column, tl.sum(dbias, 0), mask=inside)


_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "gelu_triton")


def _sizes(x: Tensor, bias: Tensor | None) -> tuple[int, int, int]:
    """Width of a row, tiles down and tiles across."""
    width = COLUMNS if bias is None else x.shape[-1]
    return width, triton.cdiv(triton.cdiv(x.numel(), width), ROWS), triton.cdiv(width, COLUMNS)


def _launch(x, bias):
    y = x.new_empty(x.shape)
    width, down, across = _sizes(x, bias)
    if down:
        forward_kernel[(down, across)](
            x.contiguous(), None if bias is None else bias.contiguous(), y, x.numel(), WIDTH=width,
            HAS_BIAS=bias is not None, ROWS=ROWS, BLOCK=COLUMNS, num_warps=NUM_WARPS,
        )  # fmt: skip
    return y


def _launch_backward(dy, x, bias):
    dx = x.new_empty(x.shape)
    width, down, across = _sizes(x, bias)
    programs = down if bias is None else min(triton.cdiv(MOST_PROGRAMS, across), triton.cdiv(down, TILES_A_PROGRAM))
    parts = x.new_empty((0 if bias is None else programs, width), dtype=torch.float32)
    if down:
        backward_kernel[(programs, across)](
            dy.contiguous(), x.contiguous(), None if bias is None else bias.contiguous(), dx, parts, x.numel(),
            triton.cdiv(x.numel(), width), WIDTH=width, HAS_BIAS=bias is not None, ROWS=ROWS, BLOCK=COLUMNS,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return dx, parts.new_empty(0) if bias is None else parts.sum(0)


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("gelu_triton", _launch, _key)
    _library.impl("gelu_triton_backward", _launch_backward, _key)


def gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """Any shape; the result is contiguous."""
    return differentiable((torch.ops.misplace.gelu_triton, torch.ops.misplace.gelu_triton_backward), x, bias)
