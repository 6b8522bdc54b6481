"""Philox4x32-10 (Salmon et al., SC 2011) in eager PyTorch: the one source of randomness of misplace.

A number is named by a 64-bit seed (the key) and four 32-bit counter words:

    word 0   item | view << 16 | stream << 24      item: patch, draw, ... (< 65,536); view < 256
    word 1   epoch
    word 2   low  32 bits of the global sample index
    word 3   high 32 bits of the global sample index

csrc/shared/philox.h says the same in C++; a test holds both against the published known answers.
"""

import enum

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Stream(enum.IntEnum):
    """Who draws; two streams never share a number."""

    TOKEN_PLAN = 0
    AUGMENTATION = 1
    SAMPLE_ORDER = 2
    REPLACEMENT = 3
    RENDER = 4


def _high_low(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """The two 32-bit halves of the 64-bit product; int64 wraps, and the masks read it as unsigned."""
    product = a * constant
    return (product >> 32) & MASK, product & MASK


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Four random words per counter.

    counter: four int64 tensors that broadcast, values in [0, 2^32). seed: in [0, 2^64).
    Returns four int64 tensors of the broadcast shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(ROUNDS):
        high0, low0 = _high_low(c0, MULTIPLIERS[0])
        high1, low1 = _high_low(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def draw(index: Tensor, items: int, *, seed: int, epoch: int, view: int, stream: Stream) -> tuple[Tensor, ...]:
    """Four words for each of `items` items of every sample.

    index: int64 [B], global sample indices. Returns four int64 [B, items], values in [0, 2^32).
    """
    item = torch.arange(items, device=index.device) | (view << 16) | (int(stream) << 24)
    index = index[:, None]
    word1 = torch.full_like(index, epoch)
    return philox4x32((item[None], word1, index & MASK, (index >> 32) & MASK), seed)


def uniform(words: Tensor) -> Tensor:
    """Random words (int64, [0, 2^32)) as float64 in [0, 1): exact, so equal on every device."""
    return words.to(torch.float64) * 2.0**-32
