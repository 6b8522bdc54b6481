"""Linear classification of frozen features: SGD over a grid of learning rates [S: MoCo v3, MAE, DINO evaluate so].

Features are standardised by their training part, as a BatchNorm without affine would [S: MAE]. The learning rate is
chosen on a fifth of the training part, held out by class [O]; then the whole of it is learned from. All rates of the
grid train at once, on the same minibatches: their weights are one batched matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from misplace.engine.errors import UserError

HELD_OUT = 0.2
MOMENTUM = 0.9
SMALLEST = 1e-6


@dataclass(frozen=True)
class LinearSettings:
    """learning_rates: of standardised features, for the batch size; epochs: of each training."""

    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    epochs: int = 100
    batch_size: int = 256


def linear_predictions(
    train_features: Tensor,  # [N, D]
    train_labels: Tensor,  # int64 [N]
    test_features: Tensor,  # [M, D]
    *,
    settings: LinearSettings = LinearSettings(),
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """The predicted label of each test image, int64 [M]. `say` gets the learning rate that was chosen.

    Raises UserError where a feature is not finite, only one class is there, or rates are to be chosen from and a class
    has a single image, which cannot be both learned from and held out.
    """
    _check(train_features, train_labels, test_features, with_held_out=len(settings.learning_rates) > 1)
    classes, target = torch.unique(train_labels, return_inverse=True)
    chosen = choose_learning_rate(train_features, target, settings=settings, seed=seed)
    say(f"linear: learning rate {chosen:g}, chosen on held-out training images")
    weights = train_linear(train_features, target, (chosen,), len(classes), settings=settings, seed=seed)
    scores = _with_one(_standardised(train_features, test_features)) @ weights[0]
    return classes[scores.argmax(1)]


def choose_learning_rate(
    features: Tensor,  # [N, D]
    target: Tensor,  # int64 [N], 0 to C - 1
    *,
    settings: LinearSettings,
    seed: int,
) -> float:
    """The rate of the grid that is most often right on the held-out part; the smaller one where two are equal."""
    held = held_out(target, seed)
    rates, count = tuple(sorted(settings.learning_rates)), int(target.max()) + 1
    if len(rates) == 1:
        return rates[0]
    weights = train_linear(features[~held], target[~held], rates, count, settings=settings, seed=seed)
    scores = _with_one(_standardised(features[~held], features[held])) @ weights  # [G, held, C]
    right = (scores.argmax(2) == target[held]).double().mean(1)
    right[~torch.isfinite(scores).flatten(1).all(1)] = -1.0  # a rate that diverged
    return rates[int(right.argmax())]


def held_out(target: Tensor, seed: int) -> Tensor:
    """bool [N]: a fifth of the images of each class, one at least, drawn by `seed`."""
    held = torch.zeros_like(target, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in range(int(target.max()) + 1):
        members = (target == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator).to(target.device)
        held[members[order[: max(1, round(HELD_OUT * len(members)))]]] = True
    return held


def train_linear(
    features: Tensor,  # [N, D]
    target: Tensor,  # int64 [N]
    learning_rates: Sequence[float],
    num_classes: int,
    *,
    settings: LinearSettings,
    seed: int,
) -> Tensor:
    """Weights of one softmax regression per learning rate, the bias below them: fp32 [G, D + 1, C], from zero."""
    x = _with_one(_standardised(features, features))
    rates = torch.tensor(learning_rates, device=x.device)[:, None, None]
    weights = x.new_zeros(len(learning_rates), x.shape[1], num_classes)
    velocity = torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = -(-len(x) // settings.batch_size)
    total, step = settings.epochs * steps_per_epoch, 0
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).chunk(steps_per_epoch):
            error = (x[rows] @ weights).softmax(2)  # [G, b, C]
            error[:, torch.arange(len(rows), device=x.device), target[rows]] -= 1
            velocity.mul_(MOMENTUM).add_(x[rows].T @ error, alpha=1 / len(rows))
            weights -= 0.5 * (1 + _cosine(step / total)) * rates * velocity
            step += 1
    return weights


def _cosine(progress: float) -> float:
    return float(torch.cos(torch.tensor(progress * torch.pi, dtype=torch.float64)))


def _standardised(train: Tensor, features: Tensor) -> Tensor:
    """By the training part's mean and deviation; what never varies there stays near zero."""
    train = train.float()
    return (features.float() - train.mean(0)) / (train.std(0, correction=0) + SMALLEST)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _check(train_features: Tensor, train_labels: Tensor, test_features: Tensor, with_held_out: bool) -> None:
    for name, features in (("training", train_features), ("test", test_features)):
        if len(features) == 0:
            raise UserError(f"linear: no {name} images")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"linear: some {name} features are not finite; the encoder has diverged")
    counts = torch.unique(train_labels, return_counts=True)[1]
    if len(counts) < 2:
        raise UserError("linear needs two classes or more; all training images have the same label")
    if with_held_out and int(counts.min()) < 2:
        raise UserError("linear: a class has a single training image; raise --num-train, or use --linear.shots")
