"""What a protocol works on: the encoders, the images of two disjoint splits, and the features of one in the other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from misplace.engine.data import Source, open_evaluation
from misplace.engine.errors import UserError

from .cache import FeatureCache, images_digest
from .features import IMAGES_AT_ONCE, NUM_TEST, NUM_TRAIN, choose_images, encode_batches, labels_of, load_batches
from .subjects import Subject

FEATURES = ("mean", "class", "both")
T = TypeVar("T")


class Split(NamedTuple):
    """Some images of a source, by number, in a fixed order."""

    name: str  # train or test
    source: Source
    indices: Tensor  # int64 [n]


class Labelled(NamedTuple):
    """Features of a split's images, those that cannot be decoded left out."""

    features: Tensor  # fp32 [n, D], on the device
    labels: Tensor  # int64 [n], on the device
    indices: Tensor  # int64 [n], of the source


def open_study_splits(
    data: str, *, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, seed: int = 0
) -> tuple[Split, Split]:
    """Training and test images of a source, never the same image. UserError as open_evaluation."""
    train, test = open_evaluation(data)
    first, second = choose_images(train, test, num_train=num_train, num_test=num_test, seed=seed)
    return Split("train", train, first), Split("test", train if test is None else test, second)


@dataclass(frozen=True)
class Study:
    """subjects: trained, random, pixels; seed: of everything a protocol draws; say: where its lines go.

    cache: where features are kept; none: they are computed each time.
    """

    subjects: tuple[Subject, ...]
    train: Split
    test: Split
    device: torch.device
    seed: int = 0
    cache: FeatureCache | None = None
    say: Callable[[str], None] = field(default=print)

    def batches(self, split: Split, image_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 [b, S, S, C] and their numbers int64 [b], as load_batches."""
        return load_batches(split.source, split.indices, image_size)

    def tracked_batches(self, split: Split, image_size: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The same under a progress bar called `name`."""
        count = -(-len(split.indices) // IMAGES_AT_ONCE)
        return self.track(self.batches(split, image_size), name, count)

    def labels(self, split: Split, indices: Tensor) -> Tensor:
        """int64 [n] on the device; UserError where an image has none."""
        return labels_of(split.source, indices).to(self.device)

    def features(self, subject: Subject, split: Split, kind: str = "mean") -> Labelled:
        """kind: "mean" of the patch tokens, "class" token, or "both" side by side.

        Raises UserError where the source is unlabelled or nothing can be decoded.
        """
        self.labels(split, split.indices[:1])  # told before the work

        def make() -> dict[str, Tensor]:
            return self._make_features(subject, split, kind)

        if self.cache is None:
            found = make()
        else:
            images = images_digest(split.source, split.indices)
            found = self.cache.get((subject.digest, kind, str(subject.image_size), images, str(self.device)), make)
        indices = found["indices"]
        if missing := len(split.indices) - len(indices):
            self.say(f"{subject.name}, {split.name}: {missing} of {len(split.indices)} images cannot be decoded")
        return Labelled(found["features"].to(self.device), self.labels(split, indices), indices)

    def _make_features(self, subject: Subject, split: Split, kind: str) -> dict[str, Tensor]:
        batches = self.tracked_batches(split, subject.image_size, f"{subject.name}, {split.name}")
        made, numbers = encode_batches(lambda images: feature(subject, images.to(self.device), kind), batches)
        return {"features": made, "indices": numbers}

    def track(self, work: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """`work` with a progress bar on a terminal's standard error."""
        console = Console(stderr=True)
        yield from track(
            work, description, total=total, console=console, transient=True, disable=not console.is_terminal
        )


def check_feature(kind: str, option: str) -> None:
    """UserError for a kind of feature that there is not."""
    if kind not in FEATURES:
        raise UserError(f"{option} {kind}: one of {', '.join(FEATURES)}")


def feature(subject: Subject, images: Tensor, kind: str) -> Tensor:
    """fp32 [B, D] as Study.features says it."""
    if kind == "mean":
        return subject.mean(images)
    if kind == "class":
        return subject.tokens(images).cls
    return torch.cat([subject.tokens(images).cls, subject.mean(images)], dim=1)
