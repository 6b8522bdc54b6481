"""misplace profile RECIPE [--model NAME] [--data SOURCE] [--device DEVICE] [--steps N] [--out FOLDER] [OPTION ...]

Runs a few real steps, times every op inside them, replays each against its PyTorch reference on the recorded shapes,
and writes profile.txt, profile.json, profile.svg, trace.json.gz and operators.txt."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from misplace.engine import config as engine_config
from misplace.engine.commands.parsing import parse
from misplace.engine.commands.pretrain import recipe_of
from misplace.engine.cpu_training import keep_freed_memory
from misplace.engine.errors import UserError
from misplace.engine.method import DTYPES
from misplace.engine.recipes import RECIPES
from misplace.engine.resolve import next_run_folder
from misplace.kernels import Impl

from .. import environment, timing
from ..roofline import matmul_rate
from ..trace import traced
from . import chart, table
from .record import Recorder, medians, replaced_ops
from .replay import replay
from .rows import Row, rows_of
from .session import Session

STEPS = 5


@dataclass(frozen=True)
class ProfileConfig:
    """How the profile is taken."""

    warm_up: int = 3
    """Steps before the first that is measured."""
    rounds: Annotated[int, arg(aliases=["--rounds"])] = 9
    """Times that an op and its reference take turns."""
    against: Annotated[str, arg(aliases=["--against"])] = "reference"
    """Implementation that every op is held against: reference, torch, ..."""
    threads: Annotated[int | None, arg(aliases=["--threads"])] = None
    """CPU threads; none: as many as torch takes."""


@dataclass(frozen=True)
class Config(engine_config.Config):
    """A recipe's configuration; --steps is how many steps are timed, and again recorded, --out where the files go."""

    profile: ProfileConfig = field(default_factory=ProfileConfig)


def configure(argv: list[str]) -> Config:
    """The configuration of the recipe, for the model and data named, with the overrides."""
    if not argv or argv[0].startswith("-"):
        raise UserError(f"misplace profile RECIPE: name a recipe, one of: {', '.join(RECIPES)}")
    name, overrides = argv[0], argv[1:]
    base = recipe_of(name, overrides)
    own = {each.name: getattr(base, each.name) for each in dataclasses.fields(base)}
    own["run"] = dataclasses.replace(base.run, steps=STEPS, epochs=None, budget=None)
    config = parse(Config, overrides, prog=f"misplace profile {name}", default=Config(**own)).validate()
    _check(config)
    return config


def _check(config: Config) -> None:
    for option, value, low in (
        ("--rounds", config.profile.rounds, 1),
        ("--profile.warm-up", config.profile.warm_up, 0),
        ("--threads", config.profile.threads, 1),
        ("--steps", config.run.steps, 1),
    ):
        if value is None and option == "--steps":
            raise UserError("misplace profile runs a number of --steps, not a --budget or --epochs")
        if value is not None and value < low:
            raise UserError(f"{option} {value}: must be {low} or more")
    if config.profile.against not in list(Impl):
        raise UserError(f"--against {config.profile.against}: one of {', '.join(Impl)}")


def main(argv: list[str]) -> int:
    """Profile; returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__)
        print(f"\nrecipes: {', '.join(RECIPES)}; `misplace profile RECIPE --help` lists every option")
        return 0
    config = configure(argv)
    folder = config.run.out or next_run_folder(Path("runs"), f"profile-{config.recipe}")
    if (folder / "profile.json").exists() and not config.run.overwrite:
        raise UserError(f"{folder} holds a profile; name another --out, or give --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    with timing.pinned_threads(config.profile.threads):
        profile, rows = take(config, folder)
    against = config.profile.against
    (folder / "profile.json").write_text(json.dumps(profile, indent=1) + "\n")
    (folder / "profile.txt").write_text(table.text(profile, rows, against))
    between = profile["step"]["recorded_ms"] - sum(row.ms for row in rows)
    chart.draw(folder / "profile.svg", "\n".join(table.headline(profile)[:3]), rows, between, against)
    print("\n".join([*table.headline(profile), "", *table.ops(profile, rows), "", *table.legend(against)]))
    print(f"\n{folder}: profile.txt with every shape, profile.svg, profile.json, trace.json.gz, operators.txt")
    return 0


def take(config: Config, folder: Path) -> tuple[dict, list[Row]]:
    """The profile as plain values, and its rows."""
    session = Session(config)
    if session.device.type == "cpu":
        keep_freed_memory()  # as training does
    own = config.profile
    for _ in session.timed_steps(own.warm_up):
        pass
    ms = timing.spread(list(session.timed_steps(config.run.steps)))
    peak = session.peak_memory()
    recorder = Recorder(session.device)
    for _ in range(config.run.steps):
        with recorder.step():
            session.step()
    with traced(folder), replaced_ops(_named_in_trace):
        session.step()
    rows = _rows(recorder, own, session.device)
    batch_size, operations = config.data.batch_size, sum(row.operations for row in rows)
    rate = operations / ms.p50 * 1e3
    profile = {
        "environment": environment.describe(session.device),
        "recipe": config.recipe,
        "model": config.model.name,
        "batch_size": batch_size,
        "precision": config.run.precision,
        "threads": torch.get_num_threads(),
        "against": own.against,
        "step": {
            "ms": ms.p50,
            "p20": ms.p20,
            "p80": ms.p80,
            "images_per_s": batch_size / ms.p50 * 1e3,
            "peak_memory": peak,
            "operations": operations,
            "tflop_s": rate * 1e-12,
            "matmul_share": rate / matmul_rate(session.device, DTYPES[config.run.precision], torch.get_num_threads()),
            "recorded_ms": timing.spread(recorder.step_ms).p50,
        },
        "rows": [row.plain() for row in rows],
    }
    return profile, rows


def _rows(recorder: Recorder, own: ProfileConfig, device: torch.device) -> list[Row]:
    step_ms, rows = timing.spread(recorder.step_ms).p50, []
    for site, spans in recorder.sites.items():
        replayed = replay(site, recorder.examples.pop(site), own.against, device, own.rounds)
        rows += rows_of(site, medians(spans, len(recorder.step_ms)), replayed, step_ms, device)
    return rows


def _named_in_trace(name: str, op: Callable, *_) -> Callable:
    """The op under its own name in the trace."""

    def call(*args, **kwargs):
        with torch.profiler.record_function(f"misplace::{name}"):
            return op(*args, **kwargs)

    return call
