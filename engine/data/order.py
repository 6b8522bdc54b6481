"""The order of samples: a permutation in constant memory, a pure function of (seed, epoch, position)."""

import math

import torch
from torch import Tensor

from misplace.engine.errors import UserError
from misplace.kernels.philox import MASK, Stream, philox4x32

ROUNDS = 6
BLOCK = 16  # batches located at once: a permutation of few samples is all overhead


class SampleOrder:
    """The samples of a source of any size, in another order each epoch.

    [O] A Feistel network over the mixed radix rows x columns, rows = ceil(sqrt(n)), columns = ceil(n /
    rows), whose round functions are Philox words, with cycle walking: a result outside [0, n) is permuted
    again. The domain is at most rows - 1 larger than n, so few positions walk (a domain of 2^k would make
    up to three of four walk).
    """

    def __init__(self, num_samples: int, seed: int):
        if num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, not {num_samples}")
        self.num_samples, self.seed = num_samples, seed
        self.rows = math.isqrt(num_samples - 1) + 1
        self.columns = -(-num_samples // self.rows)

    def index(self, epoch: int, positions: Tensor) -> Tensor:
        """The samples at the given positions of an epoch. positions: int64 [n] in [0, num_samples).

        Returns int64 [n].
        """
        index = self._permute(epoch, positions)
        walking = (index >= self.num_samples).nonzero()[:, 0]
        while len(walking):
            index[walking] = self._permute(epoch, index[walking])
            walking = walking[index[walking] >= self.num_samples]
        return index

    def _permute(self, epoch: int, value: Tensor) -> Tensor:
        """A permutation of [0, rows * columns)."""
        row, column = value % self.rows, value // self.rows
        for number in range(0, ROUNDS, 2):
            row = (row + self._word(epoch, number, column)) % self.rows
            column = (column + self._word(epoch, number + 1, row)) % self.columns
        return column * self.rows + row

    def _word(self, epoch: int, number: int, value: Tensor) -> Tensor:
        """62 random bits of (epoch, round, value), so many that a remainder of them is even."""
        word0 = torch.full_like(value, number | (int(Stream.SAMPLE_ORDER) << 24))
        counter = (word0, torch.full_like(value, epoch), value & MASK, value >> 32)
        high, low, _, _ = philox4x32(counter, self.seed)
        return ((high >> 1) << 31) | (low >> 1)


class BatchOrder:
    """Which samples a step trains on: step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.

    The last, incomplete batch of an epoch is dropped; as each epoch has another order, it drops other
    samples. Of each batch rank r of world_size takes the r-th part, so that all ranks together see what one
    would. Raises UserError where the source does not fill one batch, or the ranks do not divide it.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1):
        if num_samples < batch_size:
            raise UserError(
                f"the data has {num_samples} images, fewer than a batch of {batch_size}: lower --data.batch-size"
            )
        if batch_size % world_size:
            raise UserError(f"a batch of {batch_size} is not divided by {world_size} ranks: change --data.batch-size")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.steps_per_epoch = num_samples // batch_size
        self.order = SampleOrder(num_samples, seed)
        self._block: tuple[int, int] | None = None
        self._batches: tuple[Tensor, ...] = ()

    def locate(self, step: int) -> tuple[int, Tensor]:
        """The epoch of a step and this rank's samples of it, int64 [batch_size / world_size]."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        block, row = divmod(batch, BLOCK)
        if self._block != (epoch, block):
            stop = min((block + 1) * BLOCK, self.steps_per_epoch)
            positions = torch.arange(block * BLOCK * self.batch_size, stop * self.batch_size)
            self._batches = self.order.index(epoch, positions).split(self.batch_size)
            self._block = (epoch, block)
        return epoch, self._batches[row].chunk(self.world_size)[self.rank].clone()
