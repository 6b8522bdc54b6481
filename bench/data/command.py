"""`misplace bench data`: the input pipeline, images a second, against what people use today."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from tyro.conf import arg

from misplace.engine.commands.parsing import parse
from misplace.engine.data import choose_pipeline, make_loader, open_source
from misplace.engine.errors import UserError

from .. import results
from ..peers import dali_data, torchvision_data
from . import images
from .cores import pinned_cores
from .forms import FORMS, IMAGE_SIZE, NUM_VIEWS
from .rows import line, row, where_measured
from .segments import Open, measure, paces


class Peer(NamedTuple):
    """check: UserError where it cannot run; loader: as torchvision_data.loader."""

    check: Callable[[], None]
    loader: Callable


PEERS = {
    "torchvision": Peer(torchvision_data.check, torchvision_data.loader),
    "torchvision-bilinear": Peer(torchvision_data.check, partial(torchvision_data.loader, cubic=False)),
    "dali-plain": Peer(dali_data.check, dali_data.loader),
    "dali-plain-linear": Peer(dali_data.check, partial(dali_data.loader, cubic=False)),
}
HELD_READY = 2  # batches, by each worker of any side


@dataclass(frozen=True)
class Options:
    """Measure the input pipeline: ours and each peer in turn, each alone on the machine."""

    against: str = "torchvision"
    """Peers, with commas: torchvision (a DataLoader of PIL pictures), dali-plain (DALI as its tutorials use it), each
    with a bicubic resize as ours; torchvision-bilinear and dali-plain-linear resize as they do unasked."""
    form: Literal["two-views", "multi-crop"] = "two-views"
    """MoCo v3's two views of 224 pixels, or those and eight of 96."""
    images: str = "poses"
    """`poses` or `photographs`, at 500 x 375 pixels, or a folder."""
    pipeline: Literal["auto", "dali", "pillow"] = "auto"
    """Ours."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where ours decodes and augments."""
    hardware_decode: bool = True
    """A GPU's JPEG engine takes part."""
    workers: int = 2
    """Worker processes, or threads, of every side."""
    batch_size: int = 64
    """Images per batch."""
    rounds: int = 7
    """Times that the sides take turns."""
    seconds: float = 4.0
    """Length of a side's turn."""
    tiny: bool = False
    """One short round of small batches: a rehearsal, whose numbers say nothing."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the rows to this file."""
    csv: Annotated[Path | None, arg(metavar="FILE")] = None
    """Append the rows to this file, such as bench/results.csv."""


def main(argv: list[str]) -> int:
    """0 once everything was measured."""
    options = parse(Options, argv, prog="misplace bench data")
    peers = _peers(options)
    if options.tiny:
        options = replace(options, rounds=1, seconds=0.05, batch_size=4)
    for target in filter(None, (options.json, options.csv)):
        results.check_target(target)
    where = where_measured(torch.device(options.device))
    with tempfile.TemporaryDirectory() as scratch, pinned_cores(options.workers) as cores:
        print(
            f"{where['device']}, {options.workers} workers a side, {cores} cores, {where['versions']} {where['commit']}"
        )
        folder = images.make(options.images, Path(scratch), few=options.tiny)
        samples = measure(
            _ours(folder, options),
            {
                name: partial(peer.loader, folder, options.form, options.batch_size, options.workers)
                for name, peer in peers.items()
            },
            rounds=options.rounds,
            seconds=options.seconds,
            warm_up=1 if options.tiny else (HELD_READY + 1) * options.workers,
            together=options.workers,
            after_round=_say_round,
        )
    rows = [
        row(
            name,
            pace,
            impl=choose_pipeline(options.pipeline),
            mode=options.form,
            shape=_shape(options),
            threads=options.workers,
            **where,
        )
        for name, pace in paces(samples).items()
    ]
    for measured in rows:
        print(line(measured), flush=True)
    if options.json:
        results.write_json(options.json, rows)
    if options.csv:
        results.append_csv(options.csv, rows)
    return 0


def _peers(options: Options) -> dict[str, Peer]:
    """Those asked for. UserError for a mistake, and for what is not installed, before minutes are spent."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("bench data: --device cuda: no CUDA device here")
    names = options.against.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise UserError(f"bench data: no peer {unknown[0]!r}; one of {', '.join(PEERS)}")
    for name, value, low in (
        ("workers", options.workers, 1),
        ("rounds", options.rounds, 1),
        ("batch-size", options.batch_size, 2),
    ):
        if value < low:
            raise UserError(f"bench data: --{name} {value}: must be {low} or more")
    for name in names:
        PEERS[name].check()
    return {name: PEERS[name] for name in names}


def _say_round(of_round: dict[str, float]) -> None:
    print(", ".join(f"{name} {1e3 / ms:.0f}" for name, ms in of_round.items()), "images/s", flush=True)


def _ours(folder: Path, options: Options) -> Open:
    source = open_source(str(folder))
    pipeline = choose_pipeline(options.pipeline)

    @contextmanager
    def loader() -> Iterator[Iterator[int]]:
        with make_loader(
            source,
            batch_size=options.batch_size,
            num_views=NUM_VIEWS,
            image_size=IMAGE_SIZE,
            augment=FORMS[options.form],
            seed=0,
            workers=options.workers,
            pipeline=pipeline,
            device=torch.device(options.device),
            hardware=options.hardware_decode,
        ) as batches:
            yield (len(batch.index) for batch in batches)

    return loader


def _shape(options: Options) -> str:
    size = f" {images.WIDTH}x{images.HEIGHT}" if options.images in images.NAMES else ""
    return f"{options.images}{size} B={options.batch_size}" + ("" if options.hardware_decode else " no JPEG engine")
