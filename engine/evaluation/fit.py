"""Training of a small head on features that are held in memory."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fit(
    parameters: Sequence[Tensor],
    loss_of: Callable[[Tensor], Tensor],  # rows int64 [b] -> mean loss
    count: int,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    generator: torch.Generator,
) -> None:
    """Minimises the loss over `count` rows in place: AdamW, cosine to 0 over all steps, rows shuffled each epoch.

    [O] The last rows of an epoch that do not fill a batch wait for another epoch.
    """
    batch_size = min(batch_size, count)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    steps, step = epochs * (count // batch_size), 0
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for rows in order[: count - count % batch_size].split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            with torch.enable_grad():
                loss_of(rows).backward()
            optimizer.step()
            step += 1
