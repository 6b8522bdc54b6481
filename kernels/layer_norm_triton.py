"""The GPU kernels of layer_norm and add_layer_norm, and their launches; the ops' triton.py say what they cost.

A program takes every P-th tile of whole rows, P fixed by the shape, so that a run repeats to the bit. What is
normalised is the sum after it was rounded: the backward, which reads the rounded one, finds the same.
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

MAX_WIDTH = 8192


@triton.jit(do_not_specialize=["num_rows", "rows_per_image"])
def forward_kernel(
    x_ptr,  # [rows, D]
    branch_ptr,  # [rows, D]
    branch_scale_ptr,  # fp32 [rows / rows_per_image]
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    sum_ptr,  # [rows, D], may be x_ptr
    y_ptr,  # [rows, D]
    mean_ptr,  # fp32 [rows]
    rstd_ptr,  # fp32 [rows]
    num_rows,
    rows_per_image,
    eps,
    WIDTH: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    SAVE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, exists = column < WIDTH, row < num_rows
    mask = exists[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_SCALE:
            scale = tl.load(branch_scale_ptr + row // rows_per_image, mask=exists, other=0.0)
            branch = branch * scale[:, None]
        rounded = (x + branch).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, rounded, mask=mask)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, 1) / WIDTH
    centred = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
    if SAVE:
        tl.store(mean_ptr + row, mean, mask=exists)
        tl.store(rstd_ptr + row, rstd, mask=exists)


@triton.jit(do_not_specialize=["num_rows", "rows_per_image"])
def backward_kernel(
    dsum_ptr,  # [rows, D]
    dnormed_ptr,  # [rows, D]
    sum_ptr,  # [rows, D]
    weight_ptr,  # [D]
    mean_ptr,  # fp32 [rows]
    rstd_ptr,  # fp32 [rows]
    branch_scale_ptr,  # fp32 [rows / rows_per_image]
    dx_ptr,  # [rows, D]
    dbranch_ptr,  # [rows, D]
    parts_ptr,  # fp32 [P, 2, D], of weight and bias
    num_rows,
    rows_per_image,
    WIDTH: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, num_rows, num_programs * ROWS):
        row = first + tl.arange(0, ROWS)
        exists = row < num_rows
        mask = exists[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        total = tl.load(sum_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dnormed = tl.load(dnormed_ptr + at, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=exists, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=exists, other=0.0)
        normalised = tl.where(mask, (total - mean[:, None]) * rstd[:, None], 0.0)
        dweight += dnormed * normalised
        dbias += dnormed
        weighted = dnormed * weight[None, :]
        shift, slope = tl.sum(weighted, 1) / WIDTH, tl.sum(weighted * normalised, 1) / WIDTH
        dx = (weighted - shift[:, None] - normalised * slope[:, None]) * rstd[:, None]
        if HAS_DSUM:
            dx += tl.load(dsum_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if HAS_SCALE:
            scale = tl.load(branch_scale_ptr + row // rows_per_image, mask=exists, other=0.0)
            tl.store(dbranch_ptr + at, (dx * scale[:, None]).to(dbranch_ptr.dtype.element_ty), mask=mask)
    part = parts_ptr + program * 2 * WIDTH + column
    tl.store(part, tl.sum(dweight, 0), mask=inside)
    tl.store(part + WIDTH, tl.sum(dbias, 0), mask=inside)


class LaunchSizes(NamedTuple):
    """A tile is whole rows: 8 to 16 of its numbers a thread."""

    block: int
    rows: int
    num_warps: int
    most_programs: int  # of the backward, whose programs leave partial sums


# by the power of 2 that holds the width: rows in a tile, warps, programs (8 or 4 on each of 132 multiprocessors)
LAUNCH = {
    256: (8, 4, 1056),
    512: (4, 4, 1056),
    1024: (2, 4, 1056),
    2048: (1, 8, 528),
    4096: (1, 8, 528),
    8192: (1, 16, 264),
}
TILES_A_PROGRAM = 4  # at least, where there are more: partial sums then cost a tenth of the pass or less


@functools.cache
def launch_sizes(width: int) -> LaunchSizes:
    block = max(256, triton.next_power_of_2(width))
    return LaunchSizes(block, *LAUNCH[block])


def require_fits(op: str, x: Tensor) -> None:
    """ValueError for a row that no tile holds."""
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(f"{op}: impl=triton takes widths up to {MAX_WIDTH}, not {x.shape[-1]}")


def _rows_per_image(x: Tensor) -> int:
    return max(1, x.numel() // x.shape[-1] // max(1, x.shape[0]))


def launch_forward(
    x: Tensor,
    branch: Tensor | None,
    branch_scale: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    results: tuple[Tensor | None, ...],  # sum, y, mean, rstd; the last two without elements where they are not saved
) -> None:
    total, y, mean, rstd = results
    width = x.shape[-1]
    num_rows = x.numel() // width
    if num_rows == 0:
        return
    sizes = launch_sizes(width)
    x, branch, branch_scale = (None if tensor is None else tensor.contiguous() for tensor in (x, branch, branch_scale))
    forward_kernel[(triton.cdiv(num_rows, sizes.rows),)](
        x, branch, branch_scale, weight.contiguous(), bias.contiguous(), total, y, mean, rstd, num_rows,
        _rows_per_image(x), eps, WIDTH=width, HAS_BRANCH=branch is not None, HAS_SCALE=branch_scale is not None,
        SAVE=mean.numel() > 0, ROWS=sizes.rows, BLOCK=sizes.block, num_warps=sizes.num_warps,
    )  # fmt: skip


def launch_backward(
    dsum: Tensor | None,
    dnormed: Tensor,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    branch_scale: Tensor | None,
    dx: Tensor,
    dbranch: Tensor | None,
) -> Tensor:
    """Writes dx and, with branch_scale, dbranch; the gradients of weight and bias, fp32 [2, D]."""
    width = total.shape[-1]
    num_rows = total.numel() // width
    if num_rows == 0:
        return mean.new_zeros((2, width))
    sizes = launch_sizes(width)
    tiles = triton.cdiv(num_rows, sizes.rows)
    programs = min(sizes.most_programs, triton.cdiv(tiles, TILES_A_PROGRAM))
    parts = mean.new_empty((programs, 2, width))
    dsum, branch_scale = (None if tensor is None else tensor.contiguous() for tensor in (dsum, branch_scale))
    backward_kernel[(programs,)](
        dsum, dnormed.contiguous(), total.contiguous(), weight.contiguous(), mean, rstd, branch_scale, dx, dbranch,
        parts, num_rows, _rows_per_image(total), WIDTH=width, HAS_DSUM=dsum is not None,
        HAS_SCALE=branch_scale is not None, ROWS=sizes.rows, BLOCK=sizes.block, num_warps=sizes.num_warps,
    )  # fmt: skip
    return parts.sum(0)
