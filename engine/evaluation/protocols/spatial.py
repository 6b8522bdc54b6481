"""What a frozen encoder knows of where things are: crops of one picture, and jigsaw puzzles.

The two evaluations that SP (arXiv 2605.09963) names [S]; all else here is our own choice [O].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from misplace.engine.errors import UserError

from ..assignment import best_assignment
from ..classifiers import classifiers
from ..embed import embed
from ..jigsaw import cut_size, draw_orders, reassemble, resize, shuffle, tile_features
from ..pairs import POSITION, SCALE, crops, draw_pairs, pair_targets, r_squared
from ..ridge import fit_ridge
from ..scores import Score, score
from ..study import Split, Study, check_feature, feature
from ..subjects import Subject


@dataclass(frozen=True)
class Options:
    """spatial: position and scale of crops, and jigsaw puzzles."""

    train_images: int = 1500
    """Of the training images, at most so many."""
    test_images: int = 500
    """Of the test images, at most so many."""
    pairs: int = 1
    """Pairs of crops of each image."""
    area: tuple[float, float] = (0.1, 0.4)
    """Range of a crop's share of the image."""
    grid: int = 2
    """Tiles along a side of a puzzle: 2 or 3."""
    k: int = 20
    """Neighbours that classify the image put together again."""
    linear: bool = True
    """Also the linear probe, beside k-NN."""
    feature: str = "mean"
    """Of crops and images: mean of the patch tokens, class token, or both."""


def run(study: Study, options: Options) -> list[Score]:
    """Of every encoder: R^2 of position and scale, tiles and whole puzzles put right, and, where there are labels,
    the classification of the intact, the shuffled and the reassembled image by classifiers taught on intact ones.
    """
    _check(options)
    train = study.train._replace(indices=study.train.indices[: options.train_images])
    test = study.test._replace(indices=study.test.indices[: options.test_images])
    if not train.source.class_names:
        study.say(f"{train.source.name} has no labels: puzzles are put together, but not classified")
    scores = []
    for subject in study.subjects:
        scores += position_and_scale(study, subject, train, test, options)
        scores += jigsaw(study, subject, train, test, options)
    return scores


def position_and_scale(study: Study, subject: Subject, train: Split, test: Split, options: Options) -> list[Score]:
    """[O] Ridge regression on the two crops' features side by side; R^2 is 0 for predicting the training mean.

    A small crop enlarged is a blurred one, so some of its scale can be told without knowing what it shows: the rows of
    the random encoder and of pixels say how much.
    """
    x, y, _ = _pairs(study, subject, train, options)
    rows, wanted, groups = _pairs(study, subject, test, options)
    scores = []
    for name, which in (("position R^2", POSITION), ("scale R^2", SCALE)):
        predicted = fit_ridge(x, y[:, which])(rows)
        mean = y[:, which].mean(0)
        scores.append(r_squared(subject.name, name, predicted, wanted[:, which], mean, groups=groups, seed=study.seed))
    return scores


def _pairs(study: Study, subject: Subject, split: Split, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Features [n, 2 D], targets fp64 [n, 4] and the image of each, int64 [n]."""
    boxes = draw_pairs(len(split.indices), options.pairs, options.area, _generator(study, split, "pairs"))
    row_of = {int(index): row for row, index in enumerate(split.indices)}
    made, targets, groups = [], [], []
    for pair in range(options.pairs):
        halves = []
        for crop in range(2):
            places = {index: tuple(boxes[row, pair, crop].tolist()) for index, row in row_of.items()}
            source = crops(split.source, places, subject.image_size)
            (features,), kept = embed(study, (subject,), split._replace(source=source), options.feature)
            halves.append(features)
        rows = [row_of[int(index)] for index in kept]
        made.append(torch.cat(halves, dim=1))
        targets.append(pair_targets(boxes[rows, pair]))
        groups.append(kept)
    return torch.cat(made), torch.cat(targets).to(made[0].device), torch.cat(groups)


def jigsaw(study: Study, subject: Subject, train: Split, test: Split, options: Options) -> list[Score]:
    """[O] Ridge regression from a tile's feature to its true place, one-hot; then the best assignment of all tiles."""
    grid, tiles = options.grid, options.grid**2
    features, orders, _, _ = _puzzles(study, subject, train, grid)
    places = torch.nn.functional.one_hot(orders.flatten(), tiles).to(features.device)
    head = fit_ridge(features.flatten(0, 1), places)
    features, orders, numbers, puzzles = _puzzles(study, subject, test, grid)
    predicted = best_assignment(head(features.flatten(0, 1)).view(-1, tiles, tiles)).cpu()
    right = (predicted == orders).double()
    name, seed = f"jigsaw {grid}x{grid}", study.seed
    scores = [
        score(subject.name, f"{name} tiles in place", right.mean(1), chance=1 / tiles, seed=seed),
        score(subject.name, f"{name} wholly in place", right.prod(1), chance=1 / math.factorial(tiles), seed=seed),
    ]
    if train.source.class_names:
        shown = {
            "intact": reassemble(puzzles, orders, grid),
            "shuffled": puzzles,
            "reassembled": reassemble(puzzles, predicted, grid),
        }
        scores += _classify(study, subject, train, study.labels(test, numbers), shown, options)
    return scores


@torch.no_grad()
def _puzzles(study: Study, subject: Subject, split: Split, grid: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tile features [n, T, D], true tiles by place [n, T], numbers [n] and the puzzles uint8 [n, S', S', C].

    S': as large as the encoder's image and a multiple of the grid.
    """
    orders = draw_orders(len(split.indices), grid * grid, _generator(study, split, "jigsaw"))
    row_of = {int(index): row for row, index in enumerate(split.indices)}
    features, numbers, puzzles = [], [], []
    name = f"{subject.name}, {split.name} puzzles"
    for images, kept in study.tracked_batches(split, cut_size(subject.image_size, grid), name):
        puzzle = shuffle(images, orders[[row_of[int(index)] for index in kept]], grid)
        features.append(tile_features(subject, resize(puzzle, subject.image_size).to(study.device), grid))
        numbers.append(kept)
        puzzles.append(puzzle)
    if not numbers:
        raise UserError(f"{split.source.name}: none of the {len(split.indices)} images chosen can be decoded")
    numbers = torch.cat(numbers)
    return torch.cat(features), orders[[row_of[int(index)] for index in numbers]], numbers, torch.cat(puzzles)


@torch.no_grad()
def _classify(
    study: Study, subject: Subject, train: Split, labels: Tensor, shown: dict[str, Tensor], options: Options
) -> list[Score]:
    """Accuracy on each kind of picture in `shown`, uint8 [n, S', S', C]."""
    learned = study.features(subject, train, options.feature)
    tests = {
        name: torch.cat(
            [
                feature(subject, resize(images, subject.image_size).to(study.device), options.feature)
                for images in pictures.split(256)
            ]
        )
        for name, pictures in shown.items()
    }
    chance = 1 / len(train.source.class_names)
    scores = []
    for classifier in classifiers(options.k, linear=options.linear, seed=study.seed):
        guesses = classifier.predict(learned.features, learned.labels, torch.cat(list(tests.values())))
        for name, guess in zip(tests, guesses.split(len(labels))):
            measure = f"{name}, {classifier.name}"
            scores.append(score(subject.name, measure, guess == labels, chance=chance, seed=study.seed))
    return scores


def _generator(study: Study, split: Split, purpose: str) -> torch.Generator:
    """One stream per split and purpose, the same for every encoder."""
    words = [study.seed, *f"{split.name} {purpose}".encode()]
    mixed = 0
    for word in words:
        mixed = (mixed * 1_000_003 + word + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def _check(options: Options) -> None:
    check_feature(options.feature, "--spatial.feature")
    if options.grid not in (2, 3):
        raise UserError(f"--spatial.grid {options.grid}: 2 or 3")
    if options.pairs < 1:
        raise UserError(f"--spatial.pairs {options.pairs}: 1 or more")
    if not 0 < options.area[0] <= options.area[1] <= 1:
        raise UserError(f"--spatial.area {options.area[0]} {options.area[1]}: a range inside 0 to 1")
    if min(options.train_images, options.test_images) < 2:
        raise UserError("--spatial.train-images and --spatial.test-images: 2 or more")
