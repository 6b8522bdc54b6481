"""Parts beside objects [S: arXiv 2301.11915]: retrieval, two heads that classify, segmentation by a 1x1 convolution.

A part is a square picture around it; an object is the whole image, by the class of the source. Both go through the
same frozen encoder and the same heads, so that each figure of parts stands beside that of objects.

Chance: of retrieval the expected mAP of a random order, of a head the share of the training set's commonest class
among the test pictures, of segmentation the mIoU of a mask that is all background.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.data import centre_mask
from misplace.engine.errors import UserError

from .. import attentive_probe, segmentation_probe
from ..attentive_probe import attentive_predictions, fit_attentive
from ..linear_probe import linear_predictions
from ..part_crops import PartTable, choose_parts, load_parts, part_source
from ..ratio_scores import mean_ratio, ratio_score, sums_by_group
from ..retrieval import retrieve
from ..scores import Score, score
from ..segmentation_probe import fit_segmentation, overlaps, segment
from ..study import Split, Study
from ..subjects import Subject
from ..token_table import TokenTable, layer_table, token_table


@dataclass(frozen=True)
class Options:
    """parts: what the encoder knows of parts, beside what it knows of objects."""

    num_train_parts: int = 2000
    """Parts to learn from."""
    num_test_parts: int = 1200
    """Parts to measure on; all of them are queries of the retrieval."""
    parts_per_image: int = 4
    """At most so many of one image, drawn at random."""
    num_train_objects: int = 1500
    """Whole images to learn from, for classification and segmentation; never more than --num-train."""
    num_test_objects: int = 500
    """Whole images to measure on; never more than --num-test."""
    classes: tuple[str, ...] = ()
    """Part classes of retrieval and classification; none: all that the source has."""
    same_image: bool = False
    """Retrieval: whether other parts of the query's own image are ranked too. They share its light and texture."""
    attentive_steps: int = attentive_probe.STEPS
    """Training steps of the attentive head, in batches of 128."""
    segmentation_steps: int = segmentation_probe.STEPS
    """Training steps of the convolution, in batches of 64."""


class Level(NamedTuple):
    """Parts or objects, as training and test pictures with classes 0..C-1; groups: the image of each test picture."""

    name: str
    train: TokenTable
    test: TokenTable
    train_labels: Tensor
    test_labels: Tensor
    groups: Tensor
    num_classes: int


def run(study: Study, options: Options) -> list[Score]:
    """MEASURES of every encoder, parts and objects in turn, where the source has them. UserError as choose_parts."""
    check(options)
    source = part_source(study.test)
    part_source(study.train)
    tables = [
        choose_parts(split, limit, per_image=options.parts_per_image, classes=options.classes, seed=study.seed)
        for split, limit in ((study.train, options.num_train_parts), (study.test, options.num_test_parts))
    ]
    splits = first(study.train, options.num_train_objects), first(study.test, options.num_test_objects)
    objects = has_objects(study, splits)
    if not source.has_masks:
        study.say(f"parts: {source.name} has no masks of its parts: no segmentation")
    scores = []
    for subject in study.track(study.subjects, "parts"):
        scores += level_scores(study, subject, part_level(study, subject, tables), options)
        if objects:
            scores += level_scores(study, subject, object_level(study, subject, splits), options)
        if source.has_masks:
            scores += segmentation_scores(study, subject, splits, options)
    return sorted(scores, key=lambda s: MEASURES.index(s.measure))


MEASURES = tuple(
    f"{level} {task}"
    for task in ("retrieval mAP", "linear", "attentive", "segmentation mIoU")
    for level in ("part", "object")
)


def check(options: Options) -> None:
    """UserError for a number out of range."""
    for name, value in dataclasses.asdict(options).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise UserError(f"--parts.{name.replace('_', '-')} {value}: at least 1")


def first(split: Split, count: int) -> Split:
    return split._replace(indices=split.indices[:count])


def has_objects(study: Study, splits: tuple[Split, Split]) -> bool:
    """Whether whole images have classes to tell apart; where not, a line says so."""
    classes = [{split.source.label(int(i)) for i in split.indices} for split in splits]
    if all(len(found - {-1}) >= 2 and -1 not in found for found in classes):
        return True
    study.say(f"parts: the images of {splits[0].source.name} have no object classes to tell apart: parts alone")
    return False


def part_level(study: Study, subject: Subject, tables: list[PartTable]) -> Level:
    made = [token_table(subject, load_parts(table, subject.image_size), study.device) for table in tables]
    labels = [
        torch.tensor([table.parts[row].part_class for row in tokens.rows.tolist()])
        for table, tokens in zip(tables, made)
    ]
    return level("part", made, labels, tables[1].images[made[1].rows])


def object_level(study: Study, subject: Subject, splits: tuple[Split, Split]) -> Level:
    made = [token_table(subject, study.batches(split, subject.image_size), study.device) for split in splits]
    labels = [study.labels(split, tokens.rows).cpu() for split, tokens in zip(splits, made)]
    return level("object", made, labels, made[1].rows)


def level(name: str, tables: list[TokenTable], labels: list[Tensor], groups: Tensor) -> Level:
    """Numbers the classes that are there from 0. UserError where one has a single training picture."""
    classes, numbers = torch.unique(torch.cat(labels), return_inverse=True)
    train, test = numbers.split([len(labels[0]), len(labels[1])])
    counts = torch.bincount(train)
    if len(train) and int((counts == 1).sum()):
        raise UserError(
            f"parts: a class of {name}s has a single training picture; raise --parts.num-train-{name}s, --num-train"
        )
    return Level(name, *tables, train, test, groups, len(classes))


def level_scores(study: Study, subject: Subject, level: Level, options: Options) -> list[Score]:
    """Retrieval among the test pictures on the class token, then the two heads."""
    device, truth = study.device, level.test_labels
    groups = None if options.same_image else level.groups
    found = retrieve(level.test.cls, truth.to(device), groups)
    rows = found.queries.cpu()
    sums, counts = sums_by_group(found.average_precision, truth[rows], level.groups[rows], level.num_classes)
    expected, _ = sums_by_group(found.chance, truth[rows], level.groups[rows], level.num_classes)
    chance = float(mean_ratio(expected.sum(0), counts.sum(0)))
    scores = [ratio_score(subject.name, f"{level.name} retrieval mAP", sums, counts, chance=chance, seed=study.seed)]
    train_labels = level.train_labels.to(device)
    linear = linear_predictions(level.train.cls, train_labels, level.test.cls, seed=study.seed)
    head = fit_attentive(
        level.train.all_tokens, train_labels, level.num_classes, steps=options.attentive_steps, seed=study.seed
    )
    attentive = attentive_predictions(head, level.test.all_tokens)
    majority = torch.bincount(level.train_labels).argmax()
    chance = float((truth == majority).double().mean())
    for name, predicted in (("linear", linear), ("attentive", attentive)):
        right = predicted.cpu() == truth
        measure = f"{level.name} {name}"
        scores.append(score(subject.name, measure, right, chance=chance, groups=level.groups, seed=study.seed))
    return scores


def segmentation_scores(study: Study, subject: Subject, splits: tuple[Split, Split], options: Options) -> list[Score]:
    """Of every part class and of the whole figure, each by a convolution of its own."""
    size = subject.image_size
    made = [layer_table(subject, study.batches(split, size), study.device) for split in splits]
    masks = [part_masks(split, rows, size) for split, (_, rows) in zip(splits, made)]
    scores = []
    for name, num_classes in (("part", 1 + len(splits[0].source.part_classes)), ("object", 2)):
        train, test = masks if name == "part" else [(mask > 0).to(torch.uint8) for mask in masks]
        head = fit_segmentation(made[0][0], train, num_classes, steps=options.segmentation_steps, seed=study.seed)
        overlap = overlaps(segment(head, made[1][0], size), test, num_classes)
        nothing = overlaps(torch.zeros_like(test), test, num_classes)
        chance = float(mean_ratio(*(pixels.double().sum(0) for pixels in nothing)))
        measure = f"{name} segmentation mIoU"
        scores.append(ratio_score(subject.name, measure, *overlap, chance=chance, seed=study.seed))
    return scores


def part_masks(split: Split, images: Tensor, size: int) -> Tensor:
    """uint8 [n, S, S] under the pixels of the images as they are evaluated."""
    return torch.stack([torch.tensor(centre_mask(split.source.part_mask(i), size)) for i in images.tolist()])
