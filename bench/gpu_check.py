"""Everything that only a GPU can show, in one command and under ten minutes: `make gpu-check`.

Build info, the GPU tests, every benchmark, a short pretraining for its images/s, a profile of a few steps.
All of it is kept in bench/records/DATE-DEVICE/ (weights apart), with summary.json on top.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from misplace.engine.commands.parsing import parse
from misplace.engine.errors import UserError

from . import environment

RECORDS = Path(__file__).resolve().parent / "records"
PYTHON = sys.executable
MISPLACE = (PYTHON, "-m", "misplace.engine.cli")


@dataclass(frozen=True)
class Options:
    """Run the GPU tests, all benchmarks, a short pretraining and a profile, and keep the record."""

    device: str = "cuda"
    """cuda, or cpu for a rehearsal with tiny shapes."""
    dry_run: bool = False
    """Print what would run, and stop."""
    out: Path | None = None
    """Folder of the record; none: bench/records/DATE-DEVICE."""
    minutes: float = 10.0
    """All steps together; what does not fit is cut off and counts as failed."""
    steps: int = 60
    """Steps of the short pretraining."""
    model: str = "small"
    """Its backbone."""
    data: str = "poses"
    """Its images."""
    batch_size: int = 256
    """Its images per step."""


class Step(NamedTuple):
    """One command of the check; its output is kept in NAME.txt."""

    name: str
    command: tuple[str, ...]


def plan(options: Options, folder: Path, runs: Path) -> list[Step]:
    """The commands, in the order in which they run; what they train lands in `runs`."""
    tests = environment.CHECKOUT / "tests"
    bench = ("bench", "--device", options.device, "--json", str(folder / "bench.json"))
    bench += ("--tiny", "--rounds", "3") if options.device == "cpu" else ("--against", "eager,compile")
    pretrain = ("pretrain", "moco_v3_dilemma", "--data", options.data, "--device", options.device)
    pretrain += ("--model", options.model, "--data.batch-size", str(options.batch_size))
    pretrain += ("--run.no-report", "--run.knn-every", "0")
    steps, run, profiled = str(options.steps), str(runs / "pretrain"), str(runs / "profiled")
    trace = (PYTHON, "-m", "misplace.bench.trace", str(folder), *pretrain, "--steps", "4", "--out", profiled)
    return [
        Step("build", (PYTHON, "-m", "misplace.bench.build_info")),
        Step("tests", (PYTHON, "-m", "pytest", "-q", "-m", "gpu", str(tests))),
        Step("bench", (*MISPLACE, *bench)),
        Step("pretrain", (*MISPLACE, *pretrain, "--steps", steps, "--out", run)),
        Step("profile", trace),
    ]


def main(argv: list[str]) -> int:
    """0 when every step passed, 1 when one failed or was cut off."""
    options = parse(Options, argv, prog="gpu_check")
    if options.device not in ("cuda", "cpu"):
        raise UserError(f"gpu-check: --device {options.device}: cuda, or cpu for a rehearsal")
    if options.device == "cuda" and not torch.cuda.is_available() and not options.dry_run:
        raise UserError("gpu-check: no CUDA device here; --device cpu rehearses it, --dry-run shows its plan")
    if not (environment.CHECKOUT / "tests").is_dir():
        raise UserError("gpu-check: the tests are not installed; run it from a checkout: make gpu-check")
    folder = options.out or default_folder(options.device)
    if folder.exists():
        raise UserError(f"gpu-check: {folder} exists; name another with --out")
    with tempfile.TemporaryDirectory() as scratch:
        steps = plan(options, folder, Path(scratch))
        if options.dry_run:
            print("\n".join(f"{step.name}: {shlex.join(step.command)}" for step in steps))
            return 0
        folder.mkdir(parents=True)
        return check(steps, folder, Path(scratch), options)


def default_folder(device: str) -> Path:
    """bench/records/DATE-DEVICE, with a number where there is one from today."""
    named = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    stem = f"{datetime.now(UTC):%Y-%m-%d}-{re.sub(r'[^A-Za-z0-9]+', '-', named)}"
    folder, number = RECORDS / stem, 1
    while folder.exists():
        number += 1
        folder = RECORDS / f"{stem}-{number}"
    return folder


def check(steps: list[Step], folder: Path, runs: Path, options: Options) -> int:
    """Runs the steps within the time, writes summary.json and prints it."""
    deadline = time.monotonic() + options.minutes * 60
    outcomes = {step.name: run(step, folder, deadline) for step in steps}
    summary = {
        "environment": environment.describe(torch.device(options.device)),
        "steps": outcomes,
        "pretrain": keep_metrics(runs / "pretrain" / "metrics.jsonl", folder),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"record: {folder}")
    return 0 if all(outcome["ok"] for outcome in outcomes.values()) else 1


def run(step: Step, folder: Path, deadline: float) -> dict:
    """The outcome of one step: ok, seconds, and why not."""
    print(f"gpu-check: {step.name}", flush=True)
    start = time.monotonic()
    left = max(0.1, deadline - start)
    with (folder / f"{step.name}.txt").open("w") as log:
        try:
            code = subprocess.run(step.command, stdout=log, stderr=log, timeout=left, check=False).returncode
            reason = f"exit code {code}, see {step.name}.txt" if code else ""
        except subprocess.TimeoutExpired:
            reason = "cut off: the time of the whole check was used up"
    return {"ok": not reason, "seconds": round(time.monotonic() - start, 1), "reason": reason}


def keep_metrics(metrics: Path, folder: Path) -> dict:
    """The last line of a run's metrics, which are copied into the record; empty where the run wrote none."""
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    if not lines:
        return {}
    shutil.copy(metrics, folder)
    return json.loads(lines[-1])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"misplace: {error}", file=sys.stderr)
        sys.exit(2)
