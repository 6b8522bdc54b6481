"""What the losses of several ranks share; in one process all of it is the identity.

Every rank holds as many images and makes the mean loss of its own; the run's loss is the mean over ranks, its
gradient the mean of theirs.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function


def world_size() -> int:
    """Ranks of this run; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


class _SumOverRanks(Function):
    """The sum on every rank; whoever uses it on any rank sends its gradient back to every rank."""

    @staticmethod
    def forward(ctx, x):
        return _all_reduced(x)

    @staticmethod
    def backward(ctx, gradient):
        return _all_reduced(gradient)


class _GatherRows(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        return _all_reduced(gradient).split(ctx.rows)[rank()]


def _all_reduced(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def sum_over_ranks(x: Tensor) -> Tensor:
    """x of all ranks, added; differentiable."""
    return _SumOverRanks.apply(x) if world_size() > 1 else x


def gather_rows(x: Tensor) -> Tensor:
    """[N, ...] of every rank, one rank after the other: [N * ranks, ...]; differentiable. N is the same on all."""
    return _GatherRows.apply(x) if world_size() > 1 else x


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of x over ranks, without a gradient."""
    return _all_reduced(x) / world_size() if world_size() > 1 else x


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Every gradient becomes its mean over ranks."""
    if world_size() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


def synchronised_batch_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, D] normalised over the rows of all ranks, differentiable; their mean and biased variance."""
    rows = len(x) * world_size()
    mean = sum_over_ranks(x.sum(0)) / rows
    centred = x - mean
    variance = sum_over_ranks(centred.square().sum(0)) / rows
    return centred * (variance + eps).rsqrt(), mean.detach(), variance.detach()
