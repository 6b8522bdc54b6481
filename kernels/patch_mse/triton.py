"""patch_mse on the GPU in one pass over the predictions: loss and gradient, the targets straight from the images.

Formula         reference.py. Per patch, from whole numbers that are exact: s1 and s2, the sums of u and u^2 over the q
                pixels of a channel. With x = scale u + shift, a = mean over channels of (scale s1 / q + shift) and
                d = scale s1 / q + shift - a:  (n - 1) v = sum over channels of scale^2 (s2 - s1^2 / q) + q d^2, and
                target = (u - centre) slope, centre = s1 / q - d / scale, slope = scale / sqrt(v + eps).
Bytes moved     a prediction is read, its gradient written and its pixel read: 5 bytes a number in bf16.
Operations      some 15 a number on vectors, far below what memory allows.
Saved           the gradient, in place of the prediction.
Against eager   no fp32 image (4 bytes a number of all patches, written and read several times), no patches, no target,
                no difference; only the patches that are predicted are looked at.

A warp takes one patch of up to 1024 numbers, or several small ones, so that no sum leaves it; longer patches are walked
in blocks. Errors are added up per program, then over programs: a run repeats to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .autograd import define, differentiable, empty_results

MAX_CHANNELS = 4
MOST_NUMBERS, MOST_PATCHES, NUM_WARPS = 1024, 32, 1  # of a program: 32 numbers a thread
RESCALE_BLOCK, RESCALE_PROGRAMS, RESCALE_WARPS = 4096, 1056, 8


@triton.jit
def _pixels(images_ptr, start, walked, row_stride, inside, PATCH: tl.constexpr, CHANNELS: tl.constexpr):
    """int32 [T, P]: bytes `walked` of the patches that begin at `start`; 0 where not inside."""
    offset = (walked // (PATCH * CHANNELS)) * row_stride + walked % (PATCH * CHANNELS)
    return tl.load(images_ptr + start[:, None] + offset[None, :], mask=inside, other=0).to(tl.int32)


@triton.jit
def _by_channel(channel, of0, of1, of2, of3):
    """fp32, as `channel`: each channel's own number."""
    value = tl.where(channel == 1, of1, of0)
    return tl.where(channel == 3, of3, tl.where(channel == 2, of2, value))


@triton.jit
def _spread(of_channels, channel, CHANNELS: tl.constexpr):
    """[T, P] of [T, 4]: to every number what belongs to its channel."""
    lane = tl.arange(0, 4)[None, :]
    value = tl.sum(tl.where(lane == 0, of_channels, 0.0), 1)[:, None]
    for c in tl.static_range(1, CHANNELS):
        own = tl.sum(tl.where(lane == c, of_channels, 0.0), 1)[:, None]
        value = tl.where((channel == c)[None, :], own, value)
    return value


@triton.jit
def _sums(images_ptr, start, row_stride, exists, PATCH, CHANNELS: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr):
    """s1 and s2 of every channel: int32 [T, 4]."""
    lane = tl.arange(0, 4)[None, :]
    s1 = tl.zeros([T, 4], tl.int32)
    s2 = tl.zeros([T, 4], tl.int32)
    for first in range(0, PATCH * PATCH * CHANNELS, BLOCK):
        walked = first + tl.arange(0, BLOCK)
        inside = exists[:, None] & (walked < PATCH * PATCH * CHANNELS)[None, :]
        u = _pixels(images_ptr, start, walked, row_stride, inside, PATCH, CHANNELS)
        for c in tl.static_range(CHANNELS):
            own = tl.where((walked % CHANNELS == c)[None, :], u, 0)
            s1 += tl.where(lane == c, tl.sum(own, 1)[:, None], 0)
            s2 += tl.where(lane == c, tl.sum(own * own, 1)[:, None], 0)
    return s1, s2


@triton.jit
def _normalising(s1, s2, scale, shift, eps, AREA: tl.constexpr, CHANNELS: tl.constexpr):
    """centre and slope, [T, 4]. One grey has variance 0 and is its own centre, to the bit."""
    is_channel = (tl.arange(0, 4) < CHANNELS)[None, :]
    average = (s1 // AREA).to(tl.float32) + (s1 % AREA).to(tl.float32) / AREA
    within = s2.to(tl.int64) * AREA - s1.to(tl.int64) * s1.to(tl.int64)
    level = scale * average + shift
    a = tl.sum(tl.where(is_channel, level, 0.0), 1)[:, None] / CHANNELS
    squares = scale * scale * (within.to(tl.float32) / AREA) + AREA * (level - a) * (level - a)
    total = tl.sum(tl.where(is_channel, squares, 0.0), 1)[:, None]
    factor = 1.0 / tl.sqrt(total / (AREA * CHANNELS - 1) + eps)
    return average - (level - a) / scale, scale * factor


@triton.jit
def patch_mse_kernel(
    prediction_ptr,  # [B, M, p * p * C]
    images_ptr,  # uint8 [B, H, W, C]
    index_ptr,  # int32 [B, M]
    d_prediction_ptr,  # [B, M, p * p * C], dense
    parts_ptr,  # fp32 [number of programs]
    num_patches,  # B M
    predicted,  # M
    columns,  # patches in a row of the grid
    image_stride,
    row_stride,
    prediction_image_stride,
    prediction_stride,
    scale0, scale1, scale2, scale3,
    shift0, shift1, shift2, shift3,
    eps,
    share,  # 1 / (B M p p C)
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORMALISE: tl.constexpr,
    GRADIENT: tl.constexpr,
    T: tl.constexpr,  # patches of a program
    BLOCK: tl.constexpr,
):  # fmt: skip
    NUMBERS: tl.constexpr = PATCH * PATCH * CHANNELS
    patch = tl.program_id(0) * T + tl.arange(0, T)
    exists = patch < num_patches
    place = tl.load(index_ptr + patch, mask=exists, other=0)
    image, row, column = (patch // predicted).to(tl.int64), (place // columns).to(tl.int64), place % columns
    start = image * image_stride + row * (PATCH * row_stride) + column * (PATCH * CHANNELS)
    prediction = image * prediction_image_stride + (patch % predicted).to(tl.int64) * prediction_stride

    lane = tl.arange(0, 4)[None, :]
    scale = _by_channel(lane, scale0, scale1, scale2, scale3)
    shift = _by_channel(lane, shift0, shift1, shift2, shift3)
    if NORMALISE:
        s1, s2 = _sums(images_ptr, start, row_stride, exists, PATCH, CHANNELS, T, BLOCK)
        centre, slope = _normalising(s1, s2, scale, shift, eps, PATCH * PATCH, CHANNELS)
    else:
        centre, slope = -shift / scale, scale

    total = tl.zeros([T, BLOCK], tl.float32)
    for first in range(0, NUMBERS, BLOCK):
        walked = first + tl.arange(0, BLOCK)
        inside = exists[:, None] & (walked < NUMBERS)[None, :]
        u = _pixels(images_ptr, start, walked, row_stride, inside, PATCH, CHANNELS).to(tl.float32)
        channel = walked % CHANNELS
        target = (u - _spread(centre, channel, CHANNELS)) * _spread(slope, channel, CHANNELS)
        predicted_here = tl.load(prediction_ptr + prediction[:, None] + walked[None, :], mask=inside, other=0.0)
        error = tl.where(inside, predicted_here.to(tl.float32) - target, 0.0)
        total += error * error
        if GRADIENT:
            to = d_prediction_ptr + patch.to(tl.int64)[:, None] * NUMBERS + walked[None, :]
            tl.store(to, (error * (2 * share)).to(d_prediction_ptr.dtype.element_ty), mask=inside)
    tl.store(parts_ptr + tl.program_id(0), tl.sum(total) * share)


@triton.jit
def rescale_kernel(ptr, scale_ptr, size, BLOCK: tl.constexpr):
    scale = tl.load(scale_ptr).to(tl.float32)
    if scale != 1.0:
        for first in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
            index = first + tl.arange(0, BLOCK).to(tl.int64)
            values = tl.load(ptr + index, mask=index < size, other=0.0).to(tl.float32)
            tl.store(ptr + index, (values * scale).to(ptr.dtype.element_ty), mask=index < size)


def launch_sizes(numbers: int) -> tuple[int, int]:
    """T and BLOCK, for patches of so many numbers."""
    block = min(MOST_NUMBERS, max(4, triton.next_power_of_2(numbers)))
    return min(MOST_PATCHES, MOST_NUMBERS // block), block


_library = torch.library.Library("misplace", "FRAGMENT")
define(_library, "patch_mse_triton")
_library.define("patch_mse_triton_rescale_(Tensor(a!) d_prediction, Tensor scale) -> ()")


def _launch(prediction, images, index, patch_size, mean, std, normalise, eps, gradient):
    loss, d_prediction = empty_results(prediction, gradient)
    channels = images.shape[3]
    if images.stride(3) != 1 or images.stride(2) != channels:
        images = images.contiguous()
    prediction = prediction if prediction.stride(2) == 1 else prediction.contiguous()
    patches, block = launch_sizes(prediction.shape[2])
    parts = loss.new_empty(triton.cdiv(index.numel(), patches))
    padding = [1.0] * (MAX_CHANNELS - channels)
    scale = [1 / (255 * s) for s in std] + padding
    shift = [-m / s for m, s in zip(mean, std)] + padding
    patch_mse_kernel[parts.shape](
        prediction, images, index.contiguous(), d_prediction, parts, index.numel(), index.shape[1],
        images.shape[2] // patch_size, images.stride(0), images.stride(1), prediction.stride(0), prediction.stride(1),
        *scale, *shift, eps, 1 / prediction.numel(), PATCH=patch_size, CHANNELS=channels, NORMALISE=normalise,
        GRADIENT=gradient, T=patches, BLOCK=block, num_warps=NUM_WARPS,
    )  # fmt: skip
    return torch.sum(parts, 0, out=loss), d_prediction


def _launch_rescale(d_prediction, scale):
    programs = min(RESCALE_PROGRAMS, triton.cdiv(d_prediction.numel(), RESCALE_BLOCK))
    rescale_kernel[(programs,)](d_prediction, scale, d_prediction.numel(), BLOCK=RESCALE_BLOCK, num_warps=RESCALE_WARPS)


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("patch_mse_triton", _launch, _key)
    _library.impl("patch_mse_triton_rescale_", _launch_rescale, _key)


def patch_mse(
    prediction: Tensor,
    images: Tensor,
    index: Tensor,
    patch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    normalise: bool,
    eps: float,
) -> Tensor:
    ops = torch.ops.misplace
    return differentiable(
        ops.patch_mse_triton, ops.patch_mse_triton_rescale_, prediction, images, index, patch_size, mean, std,
        normalise, eps,
    )  # fmt: skip
