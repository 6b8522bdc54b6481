"""The gradients of patch_embed on the GPU; triton.py says what they cost."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import (
    Walk,
    by_channel,
    gather_pixels,
    is_wide,
    multiply_add,
    patch_starts,
    pixel_offsets,
    place_of,
    tile,
)

PROGRAMS = 128  # of a split sum: about one for each multiprocessor


@triton.jit
def weight_kernel(
    gradient_ptr,  # [B, 1 + K, D]
    images_ptr,
    src_ptr,  # [B * K]
    parts_ptr,  # fp32 [splits, D, P], pixels in walking order
    tokens,
    kept,
    dim,
    columns,
    tokens_each,  # a multiple of BLOCK_T
    image_stride,
    row_stride,
    column_stride,
    channel_stride,
    scale0, scale1, scale2, scale3,
    shift0, shift1, shift2, shift3,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = PATCH * PATCH * CHANNELS
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    walked = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    split = tl.program_id(2)
    in_row = d < dim
    sums = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    for first in range(split * tokens_each, tl.minimum((split + 1) * tokens_each, tokens), BLOCK_T):
        token = first + tl.arange(0, BLOCK_T)
        exists = token < tokens
        token = tl.minimum(token, tokens - 1)
        start = patch_starts(src_ptr, token, kept, columns, image_stride, row_stride, column_stride, PATCH)
        pixels = gather_pixels(
            images_ptr, start, walked, row_stride, column_stride, channel_stride,
            scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3,
            PATCH, CHANNELS, INTERLEAVED, BLOCK_P,
        )  # fmt: skip
        row = (token + token // kept + 1).to(tl.int64)
        place = gradient_ptr + row[:, None] * dim + d[None, :]
        gradient = tl.load(place, mask=exists[:, None] & in_row[None, :], other=0.0)
        sums = multiply_add(tl.trans(gradient), pixels.to(gradient.dtype), sums)
    place = parts_ptr + (split * dim + d).to(tl.int64)[:, None] * PIXELS + walked[None, :]
    tl.store(place, sums, mask=in_row[:, None] & (walked < PIXELS)[None, :])


@triton.jit
def add_parts_kernel(
    parts_ptr,  # fp32 [splits, D, P], pixels in walking order
    weight_ptr,  # [D, C, p, p]
    size,  # D * P
    splits,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    PIXELS: tl.constexpr = PATCH * PATCH * CHANNELS
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    sums = tl.zeros([BLOCK], tl.float32)
    place = parts_ptr + index.to(tl.int64)
    for _ in range(splits):
        sums += tl.load(place, mask=inside, other=0.0)
        place += size
    channel, row, column = place_of(index % PIXELS, PATCH, CHANNELS, INTERLEAVED)
    walked = (channel * PATCH + row) * PATCH + column
    tl.store(weight_ptr + (index // PIXELS) * PIXELS + walked, sums, mask=inside)


@triton.jit
def table_kernel(
    gradient_ptr,  # [N, D], every row_step-th row of the tokens' gradients
    pos_ptr,  # [B * K]
    parts_ptr,  # fp32 [splits, table_rows, D]
    num_rows,
    row_step,  # 1, or 1 + K: class tokens alone
    kept,
    dim,
    table_rows,
    rows_each,  # a multiple of BLOCK_T
    HAS_TABLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Rows of the sum: 0 class tokens, 1 + pos (without a table: 1 for any), the last one tokens without position."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    table_row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    in_row = d < dim
    sums = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in range(split * rows_each, tl.minimum((split + 1) * rows_each, num_rows), BLOCK_T):
        number = first + tl.arange(0, BLOCK_T)
        exists = number < num_rows
        row = number * row_step
        image = row // (kept + 1)
        is_token = row % (kept + 1) > 0
        pos = tl.load(pos_ptr + row - image - 1, mask=exists & is_token, other=0).to(tl.int32)
        of_known = 1 + pos if HAS_TABLE else 1
        target = tl.where(is_token, tl.where(pos < 0, table_rows - 1, of_known), 0)
        place = gradient_ptr + row.to(tl.int64)[:, None] * dim + d[None, :]
        gradient = tl.load(place, mask=exists[:, None] & in_row[None, :], other=0.0)
        chosen = (table_row[:, None] == target[None, :]).to(tl.float32).to(gradient.dtype)
        sums = multiply_add(chosen, gradient, sums)
    place = parts_ptr + (split * table_rows + table_row).to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(place, sums, mask=(table_row < table_rows)[:, None] & in_row[None, :])


@triton.jit
def image_kernel(
    gradient_ptr,  # [B, 1 + K, D]
    weight_ptr,  # [D, P], pixels in walking order
    src_ptr,  # [B * K]
    images_ptr,  # fp32, the gradient of the images
    kept,
    dim,
    num_patches,
    columns,
    image_stride,
    row_stride,
    column_stride,
    channel_stride,
    scale0, scale1, scale2, scale3,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    PIXELS: tl.constexpr = PATCH * PATCH * CHANNELS
    image = tl.program_id(0).to(tl.int64)
    patch = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    walked = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = walked < PIXELS
    sums = tl.zeros([BLOCK_L, BLOCK_P], tl.float32)
    for first_d in range(0, dim, BLOCK_D):
        d = first_d + tl.arange(0, BLOCK_D)
        weight = tl.load(
            weight_ptr + d[:, None] * PIXELS + walked[None, :], mask=(d < dim)[:, None] & inside[None, :], other=0.0
        )
        of_patch = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
        for first_k in range(0, kept, BLOCK_K):
            k = first_k + tl.arange(0, BLOCK_K)
            src = tl.load(src_ptr + image * kept + k, mask=k < kept, other=-1).to(tl.int32)
            row = image * (kept + 1) + 1 + k
            gradient = tl.load(
                gradient_ptr + row[:, None] * dim + d[None, :],
                mask=(k < kept)[:, None] & (d < dim)[None, :],
                other=0.0,
            )
            made_from = (patch[:, None] == src[None, :]).to(tl.float32).to(gradient.dtype)
            of_patch = multiply_add(made_from, gradient, of_patch)
        sums = multiply_add(of_patch.to(weight.dtype), weight, sums)
    channel, _, _ = place_of(walked, PATCH, CHANNELS, INTERLEAVED)
    scale = by_channel(channel, scale0, scale1, scale2, scale3, CHANNELS)
    offset = pixel_offsets(walked, row_stride, column_stride, channel_stride, PATCH, CHANNELS, INTERLEAVED)
    start = (patch // columns) * (PATCH * row_stride) + (patch % columns) * (PATCH * column_stride)
    place = images_ptr + image * image_stride + start[:, None] + offset[None, :]
    tl.store(place, sums * scale[None, :], mask=(patch < num_patches)[:, None] & inside[None, :])


def splits_of(rows: int, block: int, programs: int) -> tuple[int, int]:
    """Parts of a sum over `rows`, and the rows of each: as many as fill the GPU beside `programs` others."""
    blocks = triton.cdiv(rows, block)
    each = triton.cdiv(blocks, max(1, min(PROGRAMS // programs, blocks))) * block
    return triton.cdiv(rows, each), each


def weight_sizes(dim: int, pixels: int, dtype: torch.dtype, is_aligned: bool) -> tuple[int, int, int, int]:
    """BLOCK_T, BLOCK_D, BLOCK_P and num_warps."""
    if is_wide(dtype):
        return 32, tile(dim, 64), tile(pixels, 32), 4
    if not is_aligned:
        return 32, tile(dim, 64), tile(pixels, 64), 4
    return 64, tile(dim, 128), tile(pixels, 128), 8


def launch_weight(gradient: Tensor, src: Tensor, walk: Walk, result: Tensor) -> None:
    tokens, dim = src.numel(), gradient.shape[2]
    block_t, block_d, block_p, num_warps = weight_sizes(
        dim, walk.pixels, gradient.dtype, walk.is_aligned and dim % 16 == 0
    )
    programs = triton.cdiv(dim, block_d), triton.cdiv(walk.pixels, block_p)
    splits, each = splits_of(tokens, block_t, programs[0] * programs[1])
    parts = gradient.new_empty((splits, dim, walk.pixels), dtype=torch.float32)
    weight_kernel[(*programs, splits)](
        gradient, walk.images, src, parts, tokens, src.shape[1], dim, walk.columns, each, *walk.strides,
        *walk.numbers, **walk.constants,
        BLOCK_T=block_t, BLOCK_D=block_d, BLOCK_P=block_p, num_warps=num_warps,
    )  # fmt: skip
    add_parts_kernel[(triton.cdiv(result.numel(), 1024),)](
        parts, result, result.numel(), splits, **walk.constants, BLOCK=1024, num_warps=4
    )


def table_sizes(dim: int, table_rows: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """BLOCK_T, BLOCK_D, BLOCK_R and num_warps."""
    if is_wide(dtype):
        return 32, tile(dim, 64), tile(table_rows, 64), 4
    return 64, tile(dim, 128), tile(table_rows, 128), 8


def launch_tables(gradient: Tensor, pos: Tensor, num_patches: int, results: list[Tensor]) -> None:
    """results: of bias, pos_table, class_token and no_position; those without elements are not wanted."""
    bias, table, class_token, no_position = results
    if not any(result.numel() for result in results):
        return
    batch, length, dim = gradient.shape
    only_class = not (bias.numel() or table.numel() or no_position.numel())
    has_table = table.numel() > 0
    table_rows = 1 if only_class else 2 + num_patches if has_table else 3
    num_rows, row_step = (batch, length) if only_class else (batch * length, 1)
    block_t, block_d, block_r, num_warps = table_sizes(dim, table_rows, gradient.dtype)
    programs = triton.cdiv(dim, block_d), triton.cdiv(table_rows, block_r)
    splits, each = splits_of(num_rows, block_t, programs[0] * programs[1])
    parts = gradient.new_empty((splits, table_rows, dim), dtype=torch.float32)
    table_kernel[(*programs, splits)](
        gradient, pos, parts, num_rows, row_step, length - 1, dim, table_rows, each, HAS_TABLE=has_table,
        BLOCK_T=block_t, BLOCK_D=block_d, BLOCK_R=block_r, num_warps=num_warps,
    )  # fmt: skip
    sums = parts.sum(0)
    if bias.numel():
        torch.sum(sums[1:], 0, out=bias)
    for result, rows in ((table, sums[:-1]), (class_token, sums[0]), (no_position, sums[-1])):
        if result.numel():
            result.copy_(rows)


def image_sizes(dim: int, pixels: int, dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """BLOCK_L, BLOCK_K, BLOCK_D, BLOCK_P and num_warps."""
    if is_wide(dtype):
        return 32, 32, tile(dim, 32), tile(pixels, 32), 4
    return 32, 32, tile(dim, 64), tile(pixels, 32), 4


def launch_image(gradient: Tensor, weight: Tensor, src: Tensor, walk: Walk) -> None:
    """Writes walk.images, every pixel of it."""
    batch, length, dim = gradient.shape
    block_l, block_k, block_d, block_p, num_warps = image_sizes(dim, walk.pixels, gradient.dtype)
    num_patches = walk.images[0].numel() // walk.pixels
    grid = batch, triton.cdiv(num_patches, block_l), triton.cdiv(walk.pixels, block_p)
    image_kernel[grid](
        gradient, walk.weight(weight), src, walk.images, length - 1, dim, num_patches, walk.columns, *walk.strides,
        *walk.numbers[:4], **walk.constants,
        BLOCK_L=block_l, BLOCK_K=block_k, BLOCK_D=block_d, BLOCK_P=block_p, num_warps=num_warps,
    )  # fmt: skip
