"""token_bce on the GPU: one kernel over the tokens, one over what its programs leave behind.

Formula         csrc/shared/token_bce.h: with h = norm_weight * weight less its mean, a row's logit is
                rstd * sum((x - mean) * h) + c, and its gradient a combination of h and x - mean.
Bytes moved     a patch token is read once and its gradient written once: 4 D bytes in bf16, 2 D without gradients.
                Every program adds 4 D bytes of partial sums.
Operations      about 12 D a token, on vectors: bound by memory.
Saved           the gradients themselves, for a loss of weight 1; backward multiplies where the weight is another.
Against eager   a copy of the patch tokens, LayerNorm, the dot product and their backward, some 20 D bytes a token
                and 15 launches, become 4 D and two.

A program takes every P-th tile of rows, P fixed by the shape, and the second kernel adds the P partial sums in
their order: a run repeats to the bit. Programs also write the zeros of the class tokens' gradient.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autograd import differentiable, empty_results

MAX_WIDTH = 8192


@triton.jit
def _log1p_of_unit(e):
    """ln(1 + e) for e in [0, 1] as 2 artanh(e / (2 + e)), to half an ulp of fp32."""
    s = e / (2.0 + e)
    q = s * s
    series = q * (1.0 / 15.0) + 1.0 / 13.0
    series = series * q + 1.0 / 11.0
    series = series * q + 1.0 / 9.0
    series = series * q + 1.0 / 7.0
    series = series * q + 1.0 / 5.0
    series = series * q + 1.0 / 3.0
    return 2.0 * s * (series * q + 1.0)


@triton.jit
def _bce_with_logits(logit, target):
    """max(z, 0) - z t + ln(1 + exp(-|z|)) and sigmoid(z) - t."""
    e = tl.exp(-tl.abs(logit))
    sigmoid = tl.where(logit >= 0, 1.0, e) / (1.0 + e)
    return tl.maximum(logit, 0.0) - logit * target + _log1p_of_unit(e), sigmoid - target


@triton.jit
def _weight_sum(weight_sum_ptr, num_rows, WEIGHTED: tl.constexpr):
    if WEIGHTED:
        return tl.load(weight_sum_ptr).to(tl.float32)
    else:
        return num_rows.to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def token_bce_kernel(
    tokens_ptr,  # [B, OFFSET + K, D], last dimension contiguous
    image_stride,
    token_stride,
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    weight_ptr,  # [D]
    bias_ptr,  # [1]
    target_ptr,  # [B * K]
    token_weight_ptr,  # [B * K]
    weight_sum_ptr,  # [1], of token_weight
    logits_ptr,  # fp32 [B * K]
    d_tokens_ptr,  # [B, OFFSET + K, D], contiguous
    direction_ptr,  # fp32 [P, D]
    totals_ptr,  # fp32 [2, P], slopes and losses
    num_rows,
    kept,
    eps,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    head = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(norm_weight_ptr + column, mask=inside, other=0.0).to(tl.float32) * head
    h = tl.where(inside, h - tl.sum(h, 0) / WIDTH, 0.0)
    norm_bias = tl.load(norm_bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    constant = tl.sum(norm_bias * head, 0) + tl.load(bias_ptr).to(tl.float32)
    share = 1.0 / _weight_sum(weight_sum_ptr, num_rows, WEIGHTED)

    direction = tl.zeros([ROWS, BLOCK], tl.float32)
    slopes, losses = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for first in range(program * ROWS, num_rows, num_programs * ROWS):
        row = first + tl.arange(0, ROWS)
        exists = row < num_rows
        image, token = (row // kept).to(tl.int64), (row % kept).to(tl.int64)
        mask = exists[:, None] & inside[None, :]
        x_ptr = tokens_ptr + image * image_stride + (token + OFFSET) * token_stride
        x = tl.load(x_ptr[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
        projected = rstd * tl.sum(centred * h[None, :], 1)
        logit = projected + constant
        tl.store(logits_ptr + row, logit, mask=exists)
        target = tl.load(target_ptr + row, mask=exists, other=0).to(tl.float32)
        loss, slope = _bce_with_logits(logit, target)
        if WEIGHTED:
            token_weight = tl.load(token_weight_ptr + row, mask=exists, other=0.0).to(tl.float32)
            loss, slope = loss * token_weight, slope * token_weight
        losses += tl.where(exists, loss, 0.0)
        if GRADIENTS:
            slope = tl.where(exists, slope * share, 0.0)
            toward_h = slope * rstd
            toward_x = toward_h * rstd * projected / WIDTH
            slopes += slope
            direction += toward_h[:, None] * centred
            d_x = toward_h[:, None] * h[None, :] - toward_x[:, None] * centred
            d_image_ptr = d_tokens_ptr + image * (OFFSET + kept) * WIDTH
            d_x_ptr = d_image_ptr + (token + OFFSET) * WIDTH
            tl.store(d_x_ptr[:, None] + column[None, :], d_x.to(d_tokens_ptr.dtype.element_ty), mask=mask)
            for skipped in tl.static_range(OFFSET):
                zero = tl.zeros([ROWS, BLOCK], d_tokens_ptr.dtype.element_ty)
                first_of_image = mask & (token == 0)[:, None]
                tl.store((d_image_ptr + skipped * WIDTH)[:, None] + column[None, :], zero, mask=first_of_image)

    tl.store(totals_ptr + num_programs + program, tl.sum(losses, 0))
    if GRADIENTS:
        tl.store(totals_ptr + program, tl.sum(slopes, 0))
        tl.store(direction_ptr + program * WIDTH + column, tl.sum(direction, 0), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def finish_kernel(
    direction_ptr,  # fp32 [P, D]
    totals_ptr,  # fp32 [2, P]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    weight_ptr,  # [D]
    weight_sum_ptr,  # [1]
    loss_ptr,  # fp32 scalar
    d_parameters_ptr,  # fp32 [3 D + 1]
    num_programs,
    num_rows,
    WIDTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    PROGRAMS: tl.constexpr,  # power of 2, >= num_programs
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    every = tl.arange(0, PROGRAMS)
    if tl.program_id(0) == 0:
        loss = tl.sum(tl.load(totals_ptr + num_programs + every, mask=every < num_programs, other=0.0), 0)
        tl.store(loss_ptr, loss / _weight_sum(weight_sum_ptr, num_rows, WEIGHTED))
    if GRADIENTS:
        slopes = tl.sum(tl.load(totals_ptr + every, mask=every < num_programs, other=0.0), 0)
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = column < WIDTH
        sums = tl.zeros([STEP, BLOCK], tl.float32)
        for first in range(0, num_programs, STEP):
            program = first + tl.arange(0, STEP)
            mask = (program < num_programs)[:, None] & inside[None, :]
            sums += tl.load(direction_ptr + program[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
        direction = tl.sum(sums, 0)
        norm_weight = tl.load(norm_weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
        norm_bias = tl.load(norm_bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_parameters_ptr + column, weight * direction, mask=inside)
        tl.store(d_parameters_ptr + WIDTH + column, weight * slopes, mask=inside)
        tl.store(d_parameters_ptr + 2 * WIDTH + column, norm_weight * direction + norm_bias * slopes, mask=inside)
        if tl.program_id(0) == 0:
            tl.store(d_parameters_ptr + 3 * WIDTH, slopes)


@triton.jit
def rescale_kernel(ptr, scale_ptr, size, BLOCK: tl.constexpr):
    scale = tl.load(scale_ptr).to(tl.float32)
    if scale != 1.0:
        for first in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
            index = first + tl.arange(0, BLOCK).to(tl.int64)
            values = tl.load(ptr + index, mask=index < size, other=0.0).to(tl.float32)
            tl.store(ptr + index, (values * scale).to(ptr.dtype.element_ty), mask=index < size)


class LaunchSizes(NamedTuple):
    """Of token_bce_kernel; 16 numbers of a tile a thread."""

    block: int
    rows: int
    num_warps: int
    most_programs: int


# by the power of 2 that holds the width: rows in a tile, warps, programs (8 or 4 on each of 132 multiprocessors)
LAUNCH = {
    256: (8, 4, 1056),
    512: (4, 4, 1056),
    1024: (4, 8, 528),
    2048: (2, 8, 528),
    4096: (1, 8, 528),
    8192: (1, 16, 264),
}
FINISH = dict(STEP=64, BLOCK=32)
FINISH_WARPS = 4
RESCALE_BLOCK, RESCALE_PROGRAMS, RESCALE_WARPS = 4096, 1056, 8


@functools.cache
def launch_sizes(width: int) -> LaunchSizes:
    block = max(256, triton.next_power_of_2(width))
    return LaunchSizes(block, *LAUNCH[block])


_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "token_bce_triton(Tensor tokens, Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias, Tensor target, "
    "Tensor? token_weight, SymInt offset, float eps, bool gradients) "
    "-> (Tensor loss, Tensor logits, Tensor d_tokens, Tensor d_parameters)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define("token_bce_triton_rescale_(Tensor(a!) d_tokens, Tensor(b!) d_parameters, Tensor scale) -> ()")


@torch.library.register_fake("misplace::token_bce_triton", lib=_library)
def _fake(tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps, gradients):
    return tuple(empty_results(tokens, offset, gradients))


def _launch(tokens, norm_weight, norm_bias, weight, bias, target, token_weight, offset, eps, gradients):
    out = empty_results(tokens, offset, gradients)
    width, num_rows = tokens.shape[2], out.logits.numel()
    sizes = launch_sizes(width)
    programs = min(sizes.most_programs, triton.cdiv(num_rows, sizes.rows))
    tokens = tokens if tokens.stride(2) == 1 or width == 1 else tokens.contiguous()
    norm_weight, norm_bias, weight = norm_weight.contiguous(), norm_bias.contiguous(), weight.contiguous()
    weight_sum = None if token_weight is None else token_weight.sum(dtype=torch.float32)
    totals = out.logits.new_empty(2, programs)
    direction = out.logits.new_empty((programs, width) if gradients else 0)
    flags = dict(WIDTH=width, WEIGHTED=token_weight is not None, GRADIENTS=gradients)
    token_bce_kernel[(programs,)](
        tokens, tokens.stride(0), tokens.stride(1), norm_weight, norm_bias, weight, bias, target.contiguous(),
        None if token_weight is None else token_weight.contiguous(), weight_sum,
        out.logits, out.d_tokens, direction, totals, num_rows, tokens.shape[1] - offset, eps,
        OFFSET=offset, **flags, ROWS=sizes.rows, BLOCK=sizes.block, num_warps=sizes.num_warps,
    )  # fmt: skip
    finish_kernel[(triton.cdiv(width, FINISH["BLOCK"]) if gradients else 1,)](
        direction, totals, norm_weight, norm_bias, weight, weight_sum, out.loss, out.d_parameters, programs, num_rows,
        **flags, PROGRAMS=triton.next_power_of_2(programs), **FINISH, num_warps=FINISH_WARPS,
    )  # fmt: skip
    return tuple(out)


def _launch_rescale(d_tokens, d_parameters, scale):
    for gradient in (d_tokens, d_parameters):
        programs = min(RESCALE_PROGRAMS, triton.cdiv(gradient.numel(), RESCALE_BLOCK))
        rescale_kernel[(programs,)](gradient, scale, gradient.numel(), BLOCK=RESCALE_BLOCK, num_warps=RESCALE_WARPS)


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("token_bce_triton", _launch, _key)
    _library.impl("token_bce_triton_rescale_", _launch_rescale, _key)


def token_bce(
    tokens: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    offset: int,
    eps: float,
    token_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """loss and logits. TypeError for tokens in fp64; ValueError for rows wider than MAX_WIDTH."""
    if tokens.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"token_bce: impl=triton takes bfloat16, float16 or float32 tokens, not {tokens.dtype}")
    if tokens.shape[2] > MAX_WIDTH:
        raise ValueError(f"token_bce: impl=triton takes widths up to {MAX_WIDTH}, not {tokens.shape[2]}")
    return differentiable(
        torch.ops.misplace.token_bce_triton,
        torch.ops.misplace.token_bce_triton_rescale_,
        tokens,
        norm_weight,
        norm_bias,
        weight,
        bias,
        target,
        token_weight,
        offset,
        eps,
    )
