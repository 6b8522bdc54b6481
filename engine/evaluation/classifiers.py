"""The classifiers on frozen features that several protocols share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.errors import UserError

from .knn import TEMPERATURE, knn_predictions
from .linear_probe import LinearSettings, linear_predictions


class Classifier(NamedTuple):
    """predict: training features [N, D], their labels int64 [N], features [M, D] -> labels int64 [M]."""

    name: str
    predict: Callable[[Tensor, Tensor, Tensor], Tensor]


def knn_classifier(k: int, temperature: float = TEMPERATURE) -> Classifier:
    """Weighted k-NN, of as many neighbours as there are where that is fewer than k."""
    if k < 1:
        raise UserError(f"k {k}: one neighbour or more")

    def predict(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
        neighbours = min(k, len(train))
        unused = torch.zeros(len(test), dtype=torch.int64, device=train.device)
        return knn_predictions(train, labels, test, unused, ks=(neighbours,), temperature=temperature)[neighbours]

    return Classifier(f"knn {k}", predict)


def linear_classifier(seed: int) -> Classifier:
    """The linear probe. [O] Where a class has a single training image, none can be held out to choose the learning
    rate on: the smallest of the grid, as the linear protocol does for a few shots.
    """

    def predict(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
        alone = int(torch.unique(labels, return_counts=True)[1].min()) < 2
        settings = LinearSettings((min(LinearSettings.learning_rates),)) if alone else LinearSettings()
        return linear_predictions(train, labels, test, settings=settings, seed=seed)

    return Classifier("linear", predict)


def classifiers(k: int, *, linear: bool, seed: int) -> tuple[Classifier, ...]:
    """Those that a protocol measures with, in the order of its rows: k-NN and, if asked for, the linear probe."""
    return (knn_classifier(k), linear_classifier(seed)) if linear else (knn_classifier(k),)
