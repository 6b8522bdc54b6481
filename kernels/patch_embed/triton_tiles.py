"""Tiles of pixels read from where they lie, in the order in which memory has them; csrc/shared/patch_embed.h's twin."""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_CHANNELS = 4
# the interpreter multiplies the bits of a bf16, not its value
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def multiply_add(a, b, sums):
    """a . b + sums: fp32 stays fp32 (no TF32), a product of two bf16 is exact in fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def patch_starts(src_ptr, token, kept, columns, image_stride, row_stride, column_stride, PATCH: tl.constexpr):
    """int64 [T]: where the first pixel of each token's patch lies."""
    src = tl.load(src_ptr + token).to(tl.int32)
    row, column = (src // columns).to(tl.int64), (src % columns).to(tl.int64)
    start = (token // kept).to(tl.int64) * image_stride
    return start + row * (PATCH * row_stride) + column * (PATCH * column_stride)


@triton.jit
def place_of(walked, PATCH: tl.constexpr, CHANNELS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Channel, row and column of pixels in walking order."""
    if INTERLEAVED:
        in_row = walked % (PATCH * CHANNELS)
        return in_row % CHANNELS, walked // (PATCH * CHANNELS), in_row // CHANNELS
    else:
        return walked // (PATCH * PATCH), (walked // PATCH) % PATCH, walked % PATCH


@triton.jit
def pixel_offsets(
    walked, row_stride, column_stride, channel_stride,
    PATCH: tl.constexpr, CHANNELS: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """From a patch's first pixel. Where the memory is dense in a row, this says so: the loads become wide."""
    if INTERLEAVED:
        return (walked // (PATCH * CHANNELS)) * row_stride + walked % (PATCH * CHANNELS)
    else:
        channel, row, column = place_of(walked, PATCH, CHANNELS, INTERLEAVED)
        return channel * channel_stride + row * row_stride + column * column_stride


@triton.jit
def by_channel(channel, of0, of1, of2, of3, CHANNELS: tl.constexpr):
    """The channel's own number, fp32."""
    value = tl.zeros(channel.shape, tl.float32) + of0
    if CHANNELS > 1:
        value = tl.where(channel == 1, of1, value)
    if CHANNELS > 2:
        value = tl.where(channel == 2, of2, value)
    if CHANNELS > 3:
        value = tl.where(channel == 3, of3, value)
    return value


@triton.jit
def gather_pixels(
    images_ptr, start, walked, row_stride, column_stride, channel_stride,
    scale0, scale1, scale2, scale3, shift0, shift1, shift2, shift3,
    PATCH: tl.constexpr, CHANNELS: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """fp32 [T, P]: normalised pixels `walked` of the patches that begin at `start`; zero past the last pixel."""
    PIXELS: tl.constexpr = PATCH * PATCH * CHANNELS
    inside = walked < PIXELS
    offset = pixel_offsets(walked, row_stride, column_stride, channel_stride, PATCH, CHANNELS, INTERLEAVED)
    place = images_ptr + start[:, None] + offset[None, :]
    if PIXELS % BLOCK_P == 0:
        raw = tl.load(place)
    else:
        raw = tl.load(place, mask=tl.broadcast_to(inside[None, :], place.shape), other=0)
    channel, _, _ = place_of(walked, PATCH, CHANNELS, INTERLEAVED)
    scale = by_channel(channel, scale0, scale1, scale2, scale3, CHANNELS)
    shift = by_channel(channel, shift0, shift1, shift2, shift3, CHANNELS)
    pixels = raw.to(tl.float32) * scale[None, :] + shift[None, :]
    return pixels if PIXELS % BLOCK_P == 0 else tl.where(inside[None, :], pixels, 0.0)


class Walk(NamedTuple):
    """How a kernel walks the pixels of an image batch."""

    images: Tensor
    patch_size: int
    channels: int
    columns: int  # patches in a row of the grid
    strides: tuple[int, int, int, int]  # image, row, column, channel
    numbers: tuple[float, ...]  # scale and shift of four channels each
    interleaved: bool  # (row, column, channel); else (channel, row, column), the order of the weight

    @property
    def pixels(self) -> int:
        return self.patch_size**2 * self.channels

    @property
    def constants(self) -> dict[str, int | bool]:
        return dict(PATCH=self.patch_size, CHANNELS=self.channels, INTERLEAVED=self.interleaved)

    @property
    def is_aligned(self) -> bool:
        """A thread can read sixteen pixels at once: neighbours, at an address that 16 divides."""
        run = self.patch_size * (self.channels if self.interleaved else 1)
        image, row, column, channel = self.strides
        planar = not self.interleaved
        apart = (run, image, row, self.images.data_ptr(), *((channel,) if planar else ()))
        return not (planar and column != 1) and all(number % 16 == 0 for number in apart)

    def weight(self, weight: Tensor) -> Tensor:
        """The weight in walking order: a small copy, where the images would be a large one."""
        return weight.permute(0, 2, 3, 1).contiguous() if self.interleaved else weight.contiguous()


def walk_of(images: Tensor, patch_size: int, channels_last: bool, scale: list[float], shift: list[float]) -> Walk:
    sizes, strides = images.shape, images.stride()
    if not channels_last:
        sizes, strides = ([each[0], each[2], each[3], each[1]] for each in (sizes, strides))
    _, _, width, channels = sizes
    padding = [0.0] * (MAX_CHANNELS - channels)
    interleaved = channels > 1 and strides[3] == 1 and strides[2] == channels
    numbers = (*scale, *padding, *shift, *padding)
    return Walk(images, patch_size, channels, width // patch_size, tuple(strides), numbers, interleaved)


def tile(size: int, largest: int) -> int:
    """A power of two from 16, the least that tensor cores take, to `largest`."""
    return min(largest, max(16, triton.next_power_of_2(size)))


def is_wide(dtype: torch.dtype) -> bool:
    """Multiplied without tensor cores, in smaller tiles."""
    return dtype == torch.float32
