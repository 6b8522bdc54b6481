"""Linear classification of frozen features, with all labels or a few of each class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from misplace.engine.errors import UserError

from ..linear_probe import LinearSettings, linear_predictions
from ..scores import Score, score
from ..shots import draw_shots
from ..study import Labelled, Study, check_feature
from ..subjects import Subject


@dataclass(frozen=True)
class Options:
    """linear: SGD, cosine, the learning rate chosen on held-out training images."""

    feature: str = "mean"
    """mean of the patch tokens, class token, or both."""
    epochs: int = LinearSettings.epochs
    """Of each training."""
    batch_size: int = LinearSettings.batch_size
    """Of each step."""
    learning_rates: tuple[float, ...] = LinearSettings.learning_rates
    """The grid, of standardised features."""
    shots: tuple[int, ...] = ()
    """Also with so many labelled images of each class, as in 1 5 10."""
    draws: int = 5
    """Low-shot training sets that are averaged."""


def run(study: Study, options: Options) -> list[Score]:
    """ "linear" and "linear N-shot" of every encoder. UserError where labels are missing or too few."""
    settings = _settings(options)
    chance = 1 / max(1, len(study.train.source.class_names))
    scores = []
    for subject in study.subjects:
        train = study.features(subject, study.train, options.feature)
        test = study.features(subject, study.test, options.feature)
        scores.append(_with_all(study, subject, train, test, settings, chance))
        for shots in options.shots:
            right = _with_few(train, test, shots, options.draws, settings, study.seed)
            scores.append(score(subject.name, f"linear {shots}-shot", right, chance=chance, seed=study.seed))
    return scores


def _settings(options: Options) -> LinearSettings:
    check_feature(options.feature, "--linear.feature")
    for name, value in (("epochs", options.epochs), ("batch-size", options.batch_size), ("draws", options.draws)):
        if value < 1:
            raise UserError(f"--linear.{name} {value}: must be 1 or more")
    if not options.learning_rates or min(options.learning_rates) <= 0:
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
    )
    return score(subject.name, "linear", predicted == test.labels, chance=chance, seed=study.seed)


def _with_few(train: Labelled, test: Labelled, shots: int, draws: int, settings: LinearSettings, seed: int) -> Tensor:
    """[M]: the share of the draws in which each test image is classified right.

    A few images leave none to choose a rate on: the smallest of the grid, at which the regression from zero weights
    stays near the nearest class mean. [O]
    """
    gentle = LinearSettings((min(settings.learning_rates),), settings.epochs, settings.batch_size)
    right = torch.zeros(len(test.labels), dtype=torch.float64)
    for draw in range(draws):
        rows = draw_shots(train.labels, shots, seed + draw)
        predicted = linear_predictions(
            train.features[rows], train.labels[rows], test.features, settings=gentle, seed=seed
        )
        right += (predicted == test.labels).double().cpu() / draws
    return right
