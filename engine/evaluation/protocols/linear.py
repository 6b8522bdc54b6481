"""Linear classification of frozen features, with all labels or a few of each class."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tyro.conf import Suppress

from misplace.engine.errors import UserError

from ..linear_probe import LinearSettings, linear_predictions
from ..logistic import logistic_predictions
from ..scores import Score, score
from ..shots import draw_shots
from ..study import Labelled, Study, check_feature
from ..subjects import Subject


@dataclass(frozen=True)
class Options:
    """linear: SGD, cosine, the learning rate chosen on held-out training images; a few shots: logistic regression."""

    feature: str = "mean"
    """mean of the patch tokens, class token, or both."""
    epochs: int = LinearSettings.epochs
    """Of each training."""
    batch_size: int = LinearSettings.batch_size
    """Of each step."""
    learning_rates: tuple[float, ...] = LinearSettings.learning_rates
    """The grid, of standardised features."""
    shots: Suppress[tuple[int, ...]] = ()  # --shots
    """Also with so many labelled images of each class."""
    draws: int = 5
    """Low-shot training sets that are averaged."""


def run(study: Study, options: Options) -> list[Score]:
    """ "linear" and "linear N-shot" of every encoder; the draws of the latter are the same for all encoders.

    An N-shot interval is over test images, of the mean over draws; how far the draws lie apart is its deviation.
    Raises UserError where labels are missing or too few.
    """
    settings = _settings(options)
    chance = 1 / max(1, len(study.train.source.class_names))
    scores = []
    for subject in study.subjects:
        train = study.features(subject, study.train, options.feature)
        test = study.features(subject, study.test, options.feature)
        drawn = {shots: _draws(train.labels, shots, options.draws, study.seed) for shots in options.shots}
        scores.append(_with_all(study, subject, train, test, settings, chance))
        for shots, draws in drawn.items():
            right = _with_few(study, f"{subject.name}, linear {shots}-shot", train, test, draws)
            found = score(subject.name, f"linear {shots}-shot", right.mean(0), chance=chance, seed=study.seed)
            scores.append(dataclasses.replace(found, deviation=_deviation(right.mean(1))))
    return scores


def _settings(options: Options) -> LinearSettings:
    check_feature(options.feature, "--linear.feature")
    for name, value in (("epochs", options.epochs), ("batch-size", options.batch_size), ("draws", options.draws)):
        if value < 1:
            raise UserError(f"--linear.{name} {value}: must be 1 or more")
    if not options.learning_rates or not all(0 < rate < math.inf for rate in options.learning_rates):
        raise UserError("--linear.learning-rates: one or more, all above 0")
    return LinearSettings(tuple(options.learning_rates), options.epochs, options.batch_size)


def _with_all(
    study: Study, subject: Subject, train: Labelled, test: Labelled, settings: LinearSettings, chance: float
) -> Score:
    predicted = linear_predictions(
        train.features,
        train.labels,
        test.features,
        settings=settings,
        seed=study.seed,
        say=lambda line: study.say(f"{subject.name}, {line}"),
        track=study.track,
    )
    return score(subject.name, "linear", predicted == test.labels, chance=chance, seed=study.seed)


def _draws(labels: Tensor, shots: int, draws: int, seed: int) -> list[Tensor]:
    return [draw_shots(labels, shots, seed * draws + draw) for draw in range(draws)]


def _with_few(study: Study, name: str, train: Labelled, test: Labelled, draws: list[Tensor]) -> Tensor:
    """fp64 [draws, M]: 1 where a test image is classified right after a draw.

    A few images leave none to choose a learning rate on: logistic regression of a fixed strength, which has one answer.
    """
    right = []
    for rows in study.track(draws, name, len(draws)):
        predicted = logistic_predictions(train.features[rows], train.labels[rows], test.features)
        right.append((predicted == test.labels).double())
    of_draw = torch.stack(right).mean(1)
    if len(draws) > 1:
        study.say(f"{name}: {of_draw.mean():.1%}, deviation between draws {_deviation(of_draw):.1%}")
    return torch.stack(right)


def _deviation(values: Tensor) -> float | None:
    """Standard deviation; none for a single value."""
    return float(values.std()) if len(values) > 1 else None
