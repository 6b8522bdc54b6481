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
from ..evaluation.protocols.finetune import Options as FinetuneOptions
from ..evaluation.protocols.knn import Options as KnnOptions
from ..resolve import choose_device
from .parsing import parse


@dataclass(frozen=True)
class Evaluate:
    """Measure the frozen encoder of a run beside a random one and raw pixels. The last line is JSON."""

    run: Positional[Path]
    """A run folder, or a file that `misplace export` wrote."""
    protocol: Literal["knn", "finetune"] = "knn"
    """What is measured; the options of each stand under its name."""
    data: str | None = None
    """Images to measure on; none: those that the run was trained on."""
    num_train: int = NUM_TRAIN
    """Labelled images to learn from."""
    num_test: int = NUM_TEST
    """Images to measure on."""
    seed: int = 0
    """Of the choice of images and of whatever the protocol draws."""
    device: str | None = None
    """cpu or cuda; none: cuda where there is one."""
    out: Path | None = None
    """A file for the last line too."""
    knn: KnnOptions = field(default_factory=KnnOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)


def main(argv: list[str]) -> int:
    """Evaluate; prints a table and a last line of JSON."""
    options = parse(Evaluate, argv, prog="misplace evaluate")
    saved = read_encoder(options.run)
    protocol = importlib.import_module(f"misplace.engine.evaluation.protocols.{options.protocol}")
    study = open_study(saved, options)
    scores = protocol.run(study, getattr(options, options.protocol))
    print_scores(scores)
    line = json.dumps(result(scores, study, saved, options))
    if options.out:
        replace_file(options.out, (line + "\n").encode())
    print(line)
    return 0


def open_study(saved: SavedEncoder, options: Evaluate) -> Study:
    """The encoder, its baselines and the images. UserError where there is nothing to evaluate on."""
    source = options.data or saved.config.get("data", {}).get("source")
    if source is None:
        raise UserError(f"{options.run}: does not say what it was trained on; give --data")
    device = choose_device(options.device)
    train, test = open_study_splits(source, num_train=options.num_train, num_test=options.num_test, seed=options.seed)
    return Study(subjects_of(saved, device), train, test, device, options.seed)


def print_scores(scores: list[Score]) -> None:
    """A row per measure, a column per encoder."""
    encoders = list(dict.fromkeys(s.encoder for s in scores))
    table = Table("measure", *encoders, "chance", box=None, pad_edge=False)
    for measure in dict.fromkeys(s.measure for s in scores):
        found = {s.encoder: s for s in scores if s.measure == measure}
        chance = next((s.chance for s in found.values() if s.chance is not None), None)
        cells = [_cell(found[name]) if name in found else "" for name in encoders]
        table.add_row(measure, *cells, "" if chance is None else f"{chance:.1%}")
    Console(highlight=False, width=None).print(table)


def _cell(found: Score) -> str:
    return f"{found.value:.1%} ({found.low:.1%}-{found.high:.1%})"


def result(scores: list[Score], study: Study, saved: SavedEncoder, options: Evaluate) -> dict:
    """The last line: the trained encoder's figures by measure, and a row per score."""
    trained = [s for s in scores if s.encoder == study.subjects[0].name]
    line = {
        "protocol": options.protocol,
        "data": study.train.source.name,
        "num_train": len(study.train.indices),
        "num_test": len(study.test.indices),
        "seed": options.seed,
        "step": saved.step,
        "options": dataclasses.asdict(getattr(options, options.protocol)),
        "rows": [dataclasses.asdict(s) for s in scores],
    }
    if options.protocol == "knn":
        line |= {"k": [int(s.measure.split()[1]) for s in trained], "top1": [s.value for s in trained]}
    return line
