"""Low-shot training sets: the same number of labelled images of every class."""

import torch
from torch import Tensor

from misplace.engine.errors import UserError


def draw_shots(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Positions in `labels` of `shots` images of each class, int64 [classes * shots], class after class.

    labels: int64 [n]; the classes are those that occur in it. One seed, one answer, and a larger number of shots keeps
    what a smaller one drew [O]: fewer differences between the rows of a table. UserError where a class has fewer
    images, or shots is below 1.
    """
    if shots < 1:
        raise UserError(f"shots must be 1 or more, not {shots}")
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = []
    for label in torch.unique(labels).tolist():
        of_class = order[labels[order] == label]
        if len(of_class) < shots:
            raise UserError(
                f"{shots} shots: only {len(of_class)} training images of class {label}; ask for fewer shots or give"
                " more training images (--num-train)"
            )
        drawn.append(of_class[:shots])
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)
