"""Training of a small head on features that are held in memory."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def fit(
    parameters: Sequence[Tensor],
    loss_of: Callable[[Tensor], Tensor],  # rows int64 [b] -> mean loss
    count: int,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    generator: torch.Generator,
) -> None:
    """Minimises the loss over `count` rows in place: AdamW, cosine to 0 over `steps` steps.

    [O] A number of steps, not of epochs: a head on few images is trained no less than one on many.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    for step, rows in zip(range(steps), batches(count, batch_size, generator)):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        with torch.enable_grad():
            loss_of(rows).backward()
        optimizer.step()


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows int64 [min(batch_size, count)], shuffled anew each time round; those that fill no batch wait a round."""
    batch_size = min(batch_size, count)
    while True:
        yield from torch.randperm(count, generator=generator)[: count - count % batch_size].split(batch_size)
