"""Images per second of whole training steps of every recipe, by turns, on random images that are in memory already.

python -m misplace.bench.recipes [--model small] [--batch-size 16] [--device cuda] [--csv FILE]
"""

import csv
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from misplace.engine.captured_step import why_not_captured
from misplace.engine.commands.parsing import parse
from misplace.engine.cpu_training import cpu_training
from misplace.engine.method import build_optimizer
from misplace.engine.recipes import RECIPES, recipe
from misplace.engine.resolve import choose_device

from . import environment, timing
from .cases.step import Inputs
from .next_step import next_step


@dataclass(frozen=True)
class Options:
    """Measure images per second of the recipes."""

    model: str = "small"
    """Backbone."""
    image_size: int = 224
    """Side of a view, pixels."""
    patch_size: int = 16
    """Side of a patch, pixels."""
    batch_size: int = 16
    """Images of a step."""
    device: str | None = None
    """cpu or cuda; none: cuda where there is one."""
    rounds: int = 9
    """Timed steps of each."""
    recipes: str = ",".join(RECIPES)
    """Those to measure."""
    csv: Path | None = None
    """File that the rows are added to."""


class Rate(NamedTuple):
    """images_per_s: median over rounds; p20, p80: of the same."""

    recipe: str
    model: str
    image_size: int
    batch_size: int
    images_per_s: float
    p20: float
    p80: float
    device: str
    threads: int
    versions: str
    commit: str


def rates(options: Options, device: torch.device) -> Iterator[Rate]:
    """A rate per recipe, in the order asked for."""
    steps = {name: _step(name, options, device) for name in options.recipes.split(",")}
    samples = timing.interleave(steps, device, rounds=options.rounds)
    where = environment.describe(device)
    for name, milliseconds in samples.items():
        p20, p50, p80 = timing.spread([1e3 * options.batch_size / ms for ms in milliseconds])
        yield Rate(
            name, options.model, options.image_size, options.batch_size, round(p50, 1), round(p20, 1), round(p80, 1),
            where["device"], torch.get_num_threads(), where["versions"], where["commit"],
        )  # fmt: skip


def _step(name: str, options: Options, device: torch.device):
    base = recipe(name)(options.model)
    augment = base.data.augment.with_local_size(options.image_size, options.patch_size)
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, image_size=options.image_size, patch_size=options.patch_size),
        data=dataclasses.replace(base.data, batch_size=options.batch_size, augment=augment),
    )
    inputs = Inputs(config, device)
    method, config, impls = inputs.method("auto")
    captured = why_not_captured(impls, device) is None
    return next_step(method, build_optimizer(method, config, impls), config, inputs.batches, captured=captured)


def write(path: Path, found: list[Rate]) -> None:
    """Rows behind those that the file has."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(Rate._fields)
        writer.writerows(found)


def main(argv: list[str]) -> int:
    options = parse(Options, argv, prog="python -m misplace.bench.recipes", default=Options())
    device = choose_device(options.device)
    if device.type == "cpu":
        with cpu_training(0):
            found = list(rates(options, device))
    else:
        found = list(rates(options, device))
    fastest = max(rate.images_per_s for rate in found)
    for rate in found:
        print(
            f"{rate.recipe:18} {rate.images_per_s:9.1f} images/s "
            f"({rate.p20:.1f} to {rate.p80:.1f}, {rate.images_per_s / fastest:.0%} of the fastest)"
        )
    if options.csv:
        write(options.csv, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
