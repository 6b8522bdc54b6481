"""Linear classification of frozen features: SGD over a grid of learning rates [S: MoCo v3, MAE, DINO evaluate so].

Features are standardised by their training part, as a BatchNorm without affine would [S: MAE]. The learning rate is
chosen on a fifth of the training part, held out by class [O]; then the whole of it is learned from. All rates of the
grid train at once, on the same minibatches: their weights are one matrix, a step is two matrix products.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from misplace.engine.errors import UserError

HELD_OUT = 0.2
MOMENTUM = 0.9
SMALLEST = 1e-6  # deviation of a feature that varies, relative to its size

Track = Callable[[Iterable[int], str], Iterable[int]]


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
    track: Track = lambda epochs, description: epochs,
) -> Tensor:
    """The predicted label of each test image, int64 [M].

    say: gets the learning rate that was chosen; track: shows the progress of the epochs. Raises UserError where a
    feature is not finite, only one class is there, the training diverges, or rates are to be chosen from and a class
    has a single image, which cannot be both learned from and held out.
    """
    check_features(train_features, train_labels, test_features)
    classes, target = torch.unique(train_labels, return_inverse=True)
    chosen = choose_learning_rate(train_features, target, settings=settings, seed=seed, track=track)
    say(f"linear: learning rate {chosen:g}, chosen on held-out training images")
    weights = train_linear(train_features, target, (chosen,), len(classes), settings=settings, seed=seed, track=track)
    scores = with_one(standardised(train_features, test_features)) @ weights[0]
    if not bool(torch.isfinite(scores).all()):
        raise UserError(f"linear: diverged at learning rate {chosen:g}; give smaller ones")
    return classes[scores.argmax(1)]


def choose_learning_rate(
    features: Tensor,  # [N, D]
    target: Tensor,  # int64 [N], 0 to C - 1
    *,
    settings: LinearSettings,
    seed: int,
    track: Track = lambda epochs, description: epochs,
) -> float:
    """The rate of the grid that is most often right on the held-out part; the smaller one where two are equal."""
    rates, count = tuple(sorted(settings.learning_rates)), int(target.max()) + 1
    if len(rates) == 1:
        return rates[0]
    if int(torch.bincount(target).min()) < 2:
        raise UserError("linear: a class has a single training image; raise --num-train, or give one learning rate")
    held = held_out(target, seed)
    weights = train_linear(features[~held], target[~held], rates, count, settings=settings, seed=seed, track=track)
    scores = with_one(standardised(features[~held], features[held])) @ weights  # [G, held, C]
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
    track: Track = lambda epochs, description: epochs,
) -> Tensor:
    """Weights of one softmax regression per learning rate, the bias below them: fp32 [G, D + 1, C], from zero."""
    x = with_one(standardised(features, features))
    grid = len(learning_rates), num_classes
    rates = torch.tensor(learning_rates, device=x.device).repeat_interleave(num_classes)[:, None]
    weights = x.new_zeros(len(rates), x.shape[1])  # a row per rate and class: a thin product over rows is slow
    velocity = torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = -(-len(x) // settings.batch_size)
    total, step = settings.epochs * steps_per_epoch, 0
    for _ in track(range(settings.epochs), "linear probe"):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).chunk(steps_per_epoch):
            batch = x.index_select(0, rows)
            error = (batch @ weights.T).unflatten(1, grid).softmax(2)  # [b, G, C]
            error[torch.arange(len(rows), device=x.device), :, target[rows]] -= 1
            velocity.addmm_(error.flatten(1).T, batch, beta=MOMENTUM, alpha=1 / len(rows))
            weights.addcmul_(velocity, rates, value=-0.5 * (1 + math.cos(math.pi * step / total)))
            step += 1
    return weights.unflatten(0, grid).transpose(1, 2)


def standardised(train: Tensor, features: Tensor) -> Tensor:
    """fp32, by the training part's mean and deviation; what does not vary there is 0, as it says nothing."""
    train = train.float()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    varies = deviation > SMALLEST * mean.abs()
    return torch.where(varies, (features.float() - mean) / torch.where(varies, deviation, 1.0), 0.0)


def with_one(features: Tensor) -> Tensor:
    """A last column of ones, for the bias."""
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def check_features(train_features: Tensor, train_labels: Tensor, test_features: Tensor) -> None:
    """UserError where nothing linear can be learned from these features."""
    for name, features in (("training", train_features), ("test", test_features)):
        if len(features) == 0:
            raise UserError(f"linear: no {name} images")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"linear: some {name} features are not finite; the encoder has diverged")
    if len(torch.unique(train_labels)) < 2:
        raise UserError("linear needs two classes or more; all training images have the same label")
