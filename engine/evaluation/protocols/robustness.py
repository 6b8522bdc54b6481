"""Classification of changed pictures by classifiers that learned from the pictures as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.data import Source
from misplace.engine.data.poses import PosesSource
from misplace.engine.errors import UserError

from ..classifiers import classifiers
from ..contact_sheet import write_contact_sheet
from ..embed import embed
from ..mixed_poses import mixed
from ..scores import Score, score
from ..study import Split, Study, check_feature
from ..variants import DONOR, dice, edges, occluded, shuffled, stylised

CLEAN, CONFLICT = "clean", "cue conflict"
SHOWN = 6  # pictures on the contact sheet


@dataclass(frozen=True)
class Options:
    """robustness: of the pictures as they are, and changed in shape or texture."""

    train_images: int = 2000
    """Of the training images, at most so many."""
    test_images: int = 500
    """Of the test images, at most so many; each is seen under every change."""
    occlusion: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of the picture that are painted over, patch by patch."""
    tiles: tuple[int, ...] = (2, 4)
    """Tiles along a side of the shuffled pictures."""
    k: int = 20
    """Neighbours that vote."""
    linear: bool = True
    """Also the linear probe, beside k-NN."""
    feature: str = "mean"
    """mean of the patch tokens, class token, or both."""
    pictures: str | None = None
    """A PNG for the eye: some pictures under every change."""


def run(study: Study, options: Options) -> list[Score]:
    """Of every encoder: accuracy "clean" and under each change, and the drop from the same pictures unchanged.

    On `poses` also "shape over texture": of the pictures that show the pose of one class in the clothes and before
    the background of a training picture of another, decided for one of these two classes, the share decided for
    the pose's. Other sources have no such pictures; a line says so.
    """
    size, patch = study.subjects[0].image_size, study.subjects[0].patch_size
    _check(options, size)
    if not study.train.source.class_names:
        raise UserError(f"{study.train.source.name} has no labels: evaluate on a labelled source (--data)")
    train = study.train._replace(indices=study.train.indices[: options.train_images])
    test = study.test._replace(indices=study.test.indices[: options.test_images])
    donors = draw_donors(train, test, study.seed)
    sources = {CLEAN: test.source} | changes(train.source, test.source, donors, options, size, patch, study.seed)
    if CONFLICT not in sources:
        study.say(f"{test.source.name}: no renderer to swap textures with; only occluded, shuffled, stylised and edges")
    if options.pictures:
        write_contact_sheet(Path(options.pictures), list(sources.items()), test.indices[:SHOWN], size)
    seen = {
        name: embed(study, study.subjects, test._replace(source=source), options.feature)
        for name, source in sources.items()
    }
    lengths = [len(kept) for _, kept in seen.values()]
    scores = []
    for number, subject in enumerate(study.subjects):
        learned = study.features(subject, train, options.feature)
        features = torch.cat([made[number] for made, _ in seen.values()])
        for classifier in classifiers(options.k, linear=options.linear, seed=study.seed):
            guesses = classifier.predict(learned.features, learned.labels, features).cpu().split(lengths)
            tried = [Tried(name, guess, kept) for (name, (_, kept)), guess in zip(seen.items(), guesses)]
            scores += accuracies(subject.name, classifier.name, tried, test.source, study.seed)
            for conflict in tried:
                if conflict.name == CONFLICT:
                    textures = labels_of(train.source, [donors[int(i)] for i in conflict.indices])
                    scores += shape_bias(subject.name, classifier.name, conflict, test.source, textures, study)
    return scores


def draw_donors(train: Split, test: Split, seed: int) -> dict[int, int]:
    """For each test picture a training picture of another class. UserError where there is one class only."""
    labels = labels_of(train.source, train.indices.tolist())
    if len(torch.unique(labels)) < 2:
        raise UserError(f"{train.source.name}: robustness needs two classes or more among the training images")
    donors = {}
    for index in test.indices.tolist():
        others = train.indices[labels != test.source.label(index)]
        donors[index] = int(others[int(dice(seed, index, DONOR).integers(len(others)))])
    return donors


def changes(
    train: Source, test: Source, donors: dict[int, int], options: Options, size: int, patch: int, seed: int
) -> dict[str, Source]:
    """The test pictures under every change that the source allows, by name."""
    made: dict[str, Source] = {}
    donor_of: Callable[[int], int] = donors.__getitem__
    if isinstance(test, PosesSource) and isinstance(train, PosesSource):
        made["texture swapped"] = mixed(test, train, donor_of, clothes=True, background=False)
        made["background swapped"] = mixed(test, train, donor_of, clothes=False, background=True)
        made[CONFLICT] = mixed(test, train, donor_of, clothes=True, background=True)
    for share in options.occlusion:
        made[f"occluded {share:.0%}"] = occluded(test, share, size=size, block=patch, seed=seed)
    for grid in options.tiles:
        made[f"shuffled {grid}x{grid}"] = shuffled(test, grid, size=size, seed=seed)
    made["stylised"] = stylised(test, train, donor_of)
    made["edges"] = edges(test)
    return made


class Tried(NamedTuple):
    """What a classifier said of the pictures under one change, on the CPU."""

    name: str
    guesses: Tensor  # int64 [n], labels
    indices: Tensor  # int64 [n], the pictures


def accuracies(encoder: str, classifier: str, tried: list[Tried], source: Source, seed: int) -> list[Score]:
    """Accuracy under each change, and below each but the clean one its drop, paired picture by picture."""
    chance, scores, clean = 1 / len(source.class_names), [], {}
    for name, guesses, indices in tried:
        right = (guesses == labels_of(source, indices.tolist())).double()
        scores.append(score(encoder, f"{name}, {classifier}", right, chance=chance, seed=seed))
        if name == CLEAN:
            clean = dict(zip(indices.tolist(), right.tolist()))
        else:
            before = torch.tensor([clean[i] for i in indices.tolist()], dtype=torch.float64)
            scores.append(score(encoder, f"{name}, {classifier}, drop", before - right, seed=seed))
    return scores


def shape_bias(
    encoder: str, classifier: str, conflict: Tried, source: Source, textures: Tensor, study: Study
) -> list[Score]:
    """The score "shape over texture", or a line where no picture was decided for either class."""
    decided = shape_decisions(conflict.guesses, labels_of(source, conflict.indices.tolist()), textures)
    if len(decided):
        return [score(encoder, f"shape over texture, {classifier}", decided, chance=0.5, seed=study.seed)]
    study.say(f"{encoder}, {classifier}: no cue conflict was decided for either of its classes")
    return []


def shape_decisions(guesses: Tensor, shapes: Tensor, textures: Tensor) -> Tensor:
    """1 where the class of the shape was guessed, 0 where that of the texture; other guesses are left out."""
    return (guesses == shapes)[(guesses == shapes) | (guesses == textures)].double()


def labels_of(source: Source, indices: list[int]) -> Tensor:
    return torch.tensor([source.label(i) for i in indices], dtype=torch.int64)


def _check(options: Options, size: int) -> None:
    check_feature(options.feature, "--robustness.feature")
    if min(options.train_images, options.test_images) < 2:
        raise UserError("--robustness.train-images and --robustness.test-images: 2 or more")
    if any(not 0 < share <= 1 for share in options.occlusion):
        raise UserError("--robustness.occlusion: shares above 0, at most 1")
    if any(not 2 <= grid <= size // 2 for grid in options.tiles):
        raise UserError(f"--robustness.tiles: 2 to {size // 2} along a side of {size} pixels")
