"""`misplace bench data`: the input pipeline, images a second, against what people use today."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from misplace.engine.commands.parsing import parse
from misplace.engine.data import AugmentConfig, choose_pipeline, make_loader, open_source
from misplace.engine.errors import UserError

from .. import environment, results
from ..peers import dali_data, torchvision_data
from ..results import Row
from . import images
from .segments import Open, Pace, measure, paces

PEERS = {"torchvision": torchvision_data.loader, "dali-plain": dali_data.loader}
FORMS = {"two-views": AugmentConfig(), "multi-crop": AugmentConfig(crop_scale=(0.25, 1.0), local_views=8)}
WARM_UP = 6  # batches: more than any side holds ready


@dataclass(frozen=True)
class Options:
    """Measure the input pipeline: ours and each peer in turn, each alone on the machine."""

    against: str = "torchvision"
    """Peers, with commas: torchvision (a DataLoader of PIL pictures), dali-plain (DALI as its tutorials use it)."""
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
        options = Options(**{**asdict(options), "rounds": 1, "seconds": 0.05, "batch_size": 4})
    for target in filter(None, (options.json, options.csv)):
        results.check_target(target)
    where = environment.describe(torch.device(options.device))
    print(f"{where['device']}, {options.workers} workers a side, {where['versions']} {where['commit']}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = images.make(options.images, Path(scratch), few=options.tiny)
        open_peers = {
            name: partial(peer, folder, options.form, options.batch_size, options.workers)
            for name, peer in peers.items()
        }
        warm_up = 1 if options.tiny else WARM_UP
        samples = measure(
            _ours(folder, options), open_peers, rounds=options.rounds, seconds=options.seconds, warm_up=warm_up
        )
    rows = [_row(options, name, pace, where) for name, pace in paces(samples).items()]
    for row in rows:
        print(line(row), flush=True)
    if options.json:
        results.write_json(options.json, rows)
    if options.csv:
        results.append_csv(options.csv, rows)
    return 0


def _peers(options: Options) -> dict:
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
    return {name: PEERS[name] for name in names}


def _ours(folder: Path, options: Options) -> Open:
    source = open_source(str(folder))
    pipeline = choose_pipeline(options.pipeline)

    @contextmanager
    def loader() -> Iterator[Iterator[int]]:
        with make_loader(
            source,
            batch_size=options.batch_size,
            num_views=2,
            image_size=224,
            augment=FORMS[options.form],
            seed=0,
            workers=options.workers,
            pipeline=pipeline,
            device=torch.device(options.device),
            hardware=options.hardware_decode,
        ) as batches:
            yield (len(batch.index) for batch in batches)

    return loader


def _row(options: Options, peer: str, pace: Pace, where: dict[str, str]) -> Row:
    noise = max(pace.itself.p80, 1 / pace.itself.p20)
    return Row(
        op="data",
        impl=choose_pipeline(options.pipeline),
        against=peer,
        mode=options.form,
        shape=f"{options.images} 500x375 B={options.batch_size}"
        + ("" if options.hardware_decode else " no JPEG engine"),
        dtype="uint8",
        ms=pace.ours.p50,
        p20=pace.ours.p20,
        p80=pace.ours.p80,
        against_ms=pace.against.p50,
        against_p20=pace.against.p20,
        against_p80=pace.against.p80,
        ratio=pace.ratio,
        self_p20=pace.itself.p20,
        self_p80=pace.itself.p80,
        counts=max(pace.ratio, 1 / pace.ratio) > noise,
        error=0.0,
        gb_s=0.0,
        tflop_s=0.0,
        floor_share=0.0,
        device=where["device"],
        threads=options.workers,
        driver=where["driver"],
        versions=where["versions"],
        commit=where["commit"],
        date=where["date"],
    )


def line(row: Row) -> str:
    """A row for the eye."""
    noise, verdict = max(row.self_p80, 1 / row.self_p20) - 1, "" if row.counts else ", within noise"
    return (
        f"{row.op} {row.impl} {row.mode} {row.shape}: {1e3 / row.ms:.0f} images/s, {row.against} "
        f"{1e3 / row.against_ms:.0f} images/s, {row.ratio:.2f}x (itself ±{noise:.0%}{verdict})"
    )
