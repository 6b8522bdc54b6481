"""misplace evaluate RUN --protocol NAME [--data SOURCE]"""

import dataclasses
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from ..durable import replace_file
from ..encoder_file import SavedEncoder, read_encoder
from ..errors import UserError
from ..evaluation import NUM_TEST, NUM_TRAIN, Score, Study, open_study_splits, subjects_of
from ..evaluation.cache import FeatureCache, default_cache
from ..evaluation.protocols.finetune import Options as FinetuneOptions
from ..evaluation.protocols.knn import Options as KnnOptions
from ..evaluation.protocols.linear import Options as LinearOptions
from ..evaluation.protocols.parts import Options as PartsOptions
from ..evaluation.protocols.pose import Options as PoseOptions
from ..evaluation.protocols.robustness import Options as RobustnessOptions
from ..evaluation.protocols.spatial import Options as SpatialOptions
from ..resolve import choose_device
from .parsing import parse


@dataclass(frozen=True)
class Evaluate:
    """Measure the frozen encoder of a run beside a random one and raw pixels. The last line is JSON."""

    run: Positional[Path]
    """A run folder, or a file that `misplace export` wrote."""
    protocol: Literal["knn", "linear", "finetune", "parts", "spatial", "pose", "robustness"] = "knn"
    """What is measured; the options of each stand under its name."""
    data: str | None = None
    """Images to measure on; none: those that the run was trained on."""
    num_train: int = NUM_TRAIN
    """Labelled images to learn from."""
    num_test: int = NUM_TEST
    """Images to measure on."""
    seed: int = 0
    """Of the choice of images and of whatever the protocol draws."""
    shots: str | None = None
    """With few labels: so many images of each class, as in 1,5,10 (linear, finetune)."""
    device: str | None = None
    """cpu or cuda; none: cuda where there is one."""
    out: Path | None = None
    """A file for the last line too."""
    cache: bool = True
    """Keep features, and take those that were kept, by a digest of the encoder and of the images."""
    knn: KnnOptions = field(default_factory=KnnOptions)
    linear: LinearOptions = field(default_factory=LinearOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    parts: PartsOptions = field(default_factory=PartsOptions)
    spatial: SpatialOptions = field(default_factory=SpatialOptions)
    pose: PoseOptions = field(default_factory=PoseOptions)
    robustness: RobustnessOptions = field(default_factory=RobustnessOptions)


WIDTH_IN_FILES = 150
TOP1 = ("linear", "finetune")  # protocols whose first figure is a top-1 accuracy


def main(argv: list[str]) -> int:
    """Evaluate; prints a table and a last line of JSON."""
    evaluate(argv)
    return 0


def evaluate(argv: list[str]) -> dict:
    """The same; returns what the last line says."""
    options = parse(Evaluate, argv, prog="misplace evaluate")
    check(options)
    own = own_options(options)
    saved = read_encoder(options.run)
    protocol = importlib.import_module(f"misplace.engine.evaluation.protocols.{options.protocol}")
    study = open_study(saved, options)
    if hasattr(protocol, "resolve"):  # what it leaves open depends on the encoder and the images
        own = protocol.resolve(study, own)
    scores = protocol.run(study, own)
    print_scores(scores)
    found = result(scores, study, saved, options, own)
    line = json.dumps(found)
    print(line)
    if options.out:
        try:
            replace_file(options.out, (line + "\n").encode())
        except OSError as error:
            raise UserError(f"--out {options.out}: cannot be written: {error.strerror}") from None
    return found


def check(options: Evaluate) -> None:
    """UserError for what cannot be, before any work."""
    for name, value, low in (
        ("num-train", options.num_train, 1),
        ("num-test", options.num_test, 1),
        ("seed", options.seed, 0),
    ):
        if not low <= value < 2**32:
            raise UserError(f"--{name} {value}: must be {low} or more, and below 2^32")
    if options.out and (options.out.is_dir() or not options.out.absolute().parent.is_dir()):
        raise UserError(f"--out {options.out}: give a file in a folder that exists")


def own_options(options: Evaluate) -> object:
    """The protocol's. UserError for shots that are no numbers, or that the protocol does not have."""
    own = getattr(options, options.protocol)
    if options.shots is None:
        return own
    if not hasattr(own, "shots"):
        raise UserError(f"--shots: only linear and finetune have them, not {options.protocol}")
    try:
        return dataclasses.replace(own, shots=tuple(int(number) for number in options.shots.split(",")))
    except ValueError:
        raise UserError(f"--shots {options.shots}: write numbers as in 1,5,10") from None


def open_study(saved: SavedEncoder, options: Evaluate) -> Study:
    """The encoder, its baselines and the images. UserError where there is nothing to evaluate on."""
    source = options.data or saved.config.get("data", {}).get("source")
    if source is None:
        raise UserError(f"{options.run}: does not say what it was trained on; give --data")
    device = choose_device(options.device)
    train, test = open_study_splits(source, num_train=options.num_train, num_test=options.num_test, seed=options.seed)
    if train.source.channels != (channels := saved.model["channels"]):
        colours = {1: "gray", 3: "colour"}
        seen, given = (colours.get(count, f"{count}-channel") for count in (channels, train.source.channels))
        raise UserError(f"{options.run}: its encoder sees {seen} images, {source} has {given} ones; give other --data")
    cache = FeatureCache(default_cache()) if options.cache else None
    return Study(subjects_of(saved, device), train, test, device, options.seed, cache)


def print_scores(scores: list[Score]) -> None:
    """A row per measure, a column per encoder."""
    encoders = list(dict.fromkeys(s.encoder for s in scores))
    table = Table("measure", *encoders, "chance", box=None, pad_edge=False)
    for measure in dict.fromkeys(s.measure for s in scores):
        found = {s.encoder: s for s in scores if s.measure == measure}
        chance = next((s.chance for s in found.values() if s.chance is not None), None)
        cells = [_cell(found[name]) if name in found else "" for name in encoders]
        table.add_row(measure, *cells, "" if chance is None else f"{chance:.1%}")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_IN_FILES
    console.print(table)


def _cell(found: Score) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def result(scores: list[Score], study: Study, saved: SavedEncoder, options: Evaluate, own: object) -> dict:
    """The last line: the trained encoder's figures by measure, and a row per score. own: the protocol's options."""
    trained = [s for s in scores if s.encoder == study.subjects[0].name]
    line = {
        "protocol": options.protocol,
        "data": study.train.source.name,
        "num_train": len(study.train.indices),
        "num_test": len(study.test.indices),
        "seed": options.seed,
        "step": saved.step,
        "options": dataclasses.asdict(own),
        "rows": [dataclasses.asdict(s) for s in scores],
    }
    if options.protocol == "knn":
        line |= {"k": [int(s.measure.split()[1]) for s in trained], "top1": [s.value for s in trained]}
    elif trained:
        line |= {"top1": trained[0].value} if options.protocol in TOP1 else {}
    return line
