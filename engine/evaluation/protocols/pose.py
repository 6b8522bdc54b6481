"""Classification at every level of a pose hierarchy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from misplace.engine.data.poses import Level
from misplace.engine.errors import UserError

from ..classifiers import classifiers
from ..scores import Score, score
from ..study import Study, check_feature


@dataclass(frozen=True)
class Options:
    """pose: coarse to fine, on `poses` or yoga82:DIR."""

    k: int = 20
    """Neighbours that vote."""
    linear: bool = True
    """Also the linear probe, beside k-NN."""
    feature: str = "mean"
    """mean of the patch tokens, class token, or both."""


def run(study: Study, options: Options) -> list[Score]:
    """Of every encoder and level: accuracy of a classifier taught that level's classes; and of those pictures whose
    fine prediction is wrong, how often it lies in the right class of each level above.

    Chance of the first [O]: always the class most common in training, or 1 / classes where that is more. Of the
    second: any wrong class at random.
    """
    check_feature(options.feature, "--pose.feature")
    levels = hierarchy_of(study)
    scores = []
    for subject in study.subjects:
        train = study.features(subject, study.train, options.feature)
        test = study.features(subject, study.test, options.feature)
        for classifier in classifiers(options.k, linear=options.linear, seed=study.seed):
            guesses = {}
            for level in levels:
                learned, true = classes_at(level, train.labels), classes_at(level, test.labels)
                if len(torch.unique(learned)) < 2:
                    study.say(f"{level.name}: all training images are of one class; left out")
                    continue
                guesses[level.name] = guess = classifier.predict(train.features, learned, test.features)
                name = f"{level.name} ({len(level.class_names)}), {classifier.name}"
                chance = commonest_share(learned, true, len(level.class_names))
                scores.append(score(subject.name, name, guess == true, chance=chance, seed=study.seed))
            fine = levels[-1]
            if fine.name not in guesses:
                continue
            for level in levels[:-1]:
                near = near_misses(level, fine, guesses[fine.name], test.labels)
                if len(near):
                    name = f"{fine.name} wrong, {level.name} right, {classifier.name}"
                    chance = near_miss_chance(level, test.labels)
                    scores.append(score(subject.name, name, near, chance=chance, seed=study.seed))
    return scores


def hierarchy_of(study: Study) -> tuple[Level, ...]:
    """Coarse to fine, the last with a class of its own for every label. UserError where the source has none."""
    levels = getattr(study.train.source, "hierarchy", ())
    if len(levels) < 2:
        raise UserError(f"{study.train.source.name} has no hierarchy of classes: give --data poses or yoga82:DIR")
    return levels


def classes_at(level: Level, labels: Tensor) -> Tensor:
    """int64 as labels: the level's class of each."""
    return torch.tensor(level.of_pose, device=labels.device)[labels]


def commonest_share(learned: Tensor, true: Tensor, classes: int) -> float:
    """The accuracy of always answering the class most common in training, at least 1 / classes."""
    commonest = torch.bincount(learned).argmax()
    return max(float((true == commonest).double().mean()), 1 / classes)


def near_misses(level: Level, fine: Level, guesses: Tensor, labels: Tensor) -> Tensor:
    """Of the pictures whose fine class was guessed wrong: 1 where the guess lies in the right class of the level."""
    labels_of_class = torch.tensor([fine.of_pose.index(c) for c in range(len(fine.class_names))], device=guesses.device)
    wrong = guesses != classes_at(fine, labels)
    return (classes_at(level, labels_of_class[guesses]) == classes_at(level, labels))[wrong].double()


def near_miss_chance(level: Level, labels: Tensor) -> float:
    """The share of right classes of the level that guessing any wrong fine class gives, over all of `labels`."""
    sizes = torch.bincount(torch.tensor(level.of_pose, device=labels.device))
    return float((sizes[classes_at(level, labels)] - 1).double().mean()) / (len(level.of_pose) - 1)
