"""What is compared, for how long, in which order: decided before anything is trained."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..clock import format_duration
from ..config import Config, to_plain
from ..data import Source, open_source
from ..errors import UserError
from ..resolve import resolve

CURVE_POINTS = 10  # k-NN evaluations on the way of a run
SAVED_ELSEWHERE_MINUTES = 1e9  # a comparison saves after every slice
SHARED = (  # what runs must share for their accuracies to be comparable, and the option that sets it
    ("model.name", "--model"),
    ("model.image_size", "--model.image-size"),
    ("model.patch_size", "--model.patch-size"),
    ("run.device", "--device"),
)


@dataclass(frozen=True)
class Variant:
    """One recipe with its changes, under the name that the tables show. axes: its place in a grid."""

    name: str
    config: Config
    axes: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^A-Za-z0-9._=-]+", "-", self.name)


class Slice(NamedTuple):
    """One turn of one run. until: seconds of its training time at which the turn ends."""

    round: int
    variant: int
    until: float


@dataclass(frozen=True)
class Plan:
    """variants: the first is what the others are measured against; budget, slice_seconds: of training time."""

    variants: tuple[Variant, ...]
    seeds: int
    budget: float
    slice_seconds: float

    @property
    def rounds(self) -> int:
        return math.ceil(self.budget / self.slice_seconds - 1e-9)

    def slices(self) -> Iterator[Slice]:
        """Of one seed, in order: every run once per round, each round begun by another."""
        count = len(self.variants)
        for number in range(self.rounds):
            until = min(self.budget, (number + 1) * self.slice_seconds)
            for turn in range(count):
                yield Slice(number, (number + turn) % count, until)

    def to_plain(self) -> dict:
        """Two comparisons with equal plans train the same runs."""
        plain = {
            "budget": self.budget,
            "slice": self.slice_seconds,
            "seeds": self.seeds,
            "variants": [{"name": v.name, "axes": dict(v.axes), "config": to_plain(v.config)} for v in self.variants],
        }
        return json.loads(json.dumps(plain))

    def describe(self) -> list[str]:
        """Lines for a dry run."""
        runs = len(self.variants) * self.seeds
        shared = self.variants[0].config
        return [
            *(f"{'recipes:' if n == 0 else ''} {v.name}".rjust(9 + len(v.name)) for n, v in enumerate(self.variants)),
            f"data {shared.data.source}, model {shared.model.name} at {shared.model.image_size} / "
            f"{shared.model.patch_size}, device {shared.run.device}",
            f"seeds: {self.seeds}; seconds of training for each run: {self.budget:g}",
            f"slices of {self.slice_seconds:g} s, {self.rounds} rounds, each begun by the next recipe",
            f"training: {runs} runs, {format_duration(runs * self.budget)} in all; start-up, saving and evaluation "
            f"({CURVE_POINTS - 1} short k-NN, then k-NN and linear, per run) come on top",
        ]


def make_plan(variants: list[Variant], *, seeds: int, budget: float, slice_seconds: float) -> tuple[Plan, Source]:
    """The plan with every configuration resolved, and the source that all share. UserError where unfair or unusable."""
    if len(variants) < 2:
        raise UserError("misplace compare: name two recipes or more")
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more")
    names = [v.folder for v in variants]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"misplace compare: {twice} is named twice")
    _check_same_data(variants)
    source = open_source(variants[0].config.data.source)
    _check_labels(source)
    resolved = tuple(dataclasses.replace(v, config=_resolved(v.config, source)) for v in variants)
    _check_shared(resolved)
    return Plan(resolved, seeds, budget, min(slice_seconds, budget)), source


def run_config(plan: Plan, variant: Variant, seed: int, out: Path) -> Config:
    """The configuration of one run of the plan."""
    run = dataclasses.replace(
        variant.config.run,
        out=out,
        seed=seed,
        steps=None,
        epochs=None,
        budget=f"{plan.budget:.6f}s",
        knn_every=1 / CURVE_POINTS,
        checkpoint_minutes=SAVED_ELSEWHERE_MINUTES,
        checkpoint_steps=None,
        keep=1,
        report=False,
        overwrite=False,
        resume=(out / "config.json").exists(),
    )
    return dataclasses.replace(variant.config, run=run)


def _resolved(config: Config, source: Source) -> Config:
    """Without a folder, which each run is given later."""
    config = resolve(config.validate(), source)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, out=None))


def _check_same_data(variants: list[Variant]) -> None:
    """Before anything is opened: other data may not even be there."""
    first = variants[0]
    for other in variants[1:]:
        if other.config.data.source != first.config.data.source:
            raise _differs(first, other, "data.source", first.config.data.source, other.config.data.source, "--data")


def _differs(first: Variant, other: Variant, path: str, here, there, option: str) -> UserError:
    return UserError(
        f"misplace compare: {first.name} has {path} {here} and {other.name} {there}; give all recipes the same {option}"
    )


def _check_labels(source: Source) -> None:
    classes = len(source.class_names)
    if classes < 2:
        has = "no labels" if classes == 0 else "one class"
        raise UserError(
            f"{source.name} has {has}: accuracies are what is compared; give --data with two labelled classes or more"
        )


def _check_shared(variants: tuple[Variant, ...]) -> None:
    first = variants[0]
    for other in variants[1:]:
        for path, option in SHARED:
            section, _, name = path.partition(".")
            here, there = (getattr(getattr(v.config, section), name) for v in (first, other))
            if here != there:
                raise _differs(first, other, path, here, there, option)
