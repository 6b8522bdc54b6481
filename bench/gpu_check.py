"""Everything that only a GPU can show, in one command and under ten minutes: `make gpu-check`.

The extension built by nvcc, registers and spills, the GPU tests, every benchmark, a short pretraining and profiles of
the sparse and the dense step for their images/s. All of it is kept in bench/records/DATE-DEVICE/ (weights apart), with
summary.json on top. Every step is a process of its own: one that crashes the GPU's context ends alone.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from misplace.engine.commands.parsing import parse
from misplace.engine.errors import UserError

from . import environment
from .environment import CHECKOUT
from .gpu_plan import PROFILED, Options, Step, plan

RECORDS = Path(__file__).resolve().parent / "records"


def main(argv: list[str]) -> int:
    """0 when every step passed, 1 when one failed or was cut off."""
    options = parse(Options, argv, prog="gpu_check")
    if options.device not in ("cuda", "cpu"):
        raise UserError(f"gpu-check: --device {options.device}: cuda, or cpu for a rehearsal")
    if options.device == "cuda" and not torch.cuda.is_available() and not options.dry_run:
        raise UserError("gpu-check: no CUDA device here; --device cpu rehearses it, --dry-run shows its plan")
    if not (CHECKOUT / "tests").is_dir():
        raise UserError("gpu-check: the tests are not installed; run it from a checkout: make gpu-check")
    folder = (options.out or default_folder(options.device)).resolve()  # steps run in the checkout
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
    seconds = options.minutes * 60
    deadline = time.monotonic() + seconds
    outcomes = {step.name: run(step, folder, deadline, step.share * seconds) for step in steps}
    summary = {
        "environment": environment.describe(torch.device(options.device)),
        "steps": outcomes,
        "bench": gather_rows(folder),
        "pretrain": keep_metrics(runs / "pretrain" / "metrics.jsonl", folder),
        "profile": {name: profiled_step(folder / name) for name in PROFILED},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"record: {folder}")
    return 0 if all(outcome["ok"] for outcome in outcomes.values()) else 1


def run(step: Step, folder: Path, deadline: float, limit: float) -> dict:
    """The outcome of one step, which has `limit` seconds: ok, seconds, and why not."""
    print(f"gpu-check: {step.name}", flush=True)
    start = time.monotonic()
    left = max(0.1, min(limit, deadline - start))
    with (folder / f"{step.name}.txt").open("w") as log:
        try:
            done = subprocess.run(step.command, stdout=log, stderr=log, timeout=left, check=False, cwd=CHECKOUT)
            reason = f"exit code {done.returncode}, see {step.name}.txt" if done.returncode else ""
        except subprocess.TimeoutExpired:
            whole = "its share of the time" if left == limit else "the time of the whole check"
            reason = f"cut off: {whole} was used up"
    return {"ok": not reason, "seconds": round(time.monotonic() - start, 1), "reason": reason}


def gather_rows(folder: Path) -> dict[str, int]:
    """The rows of every op in one bench.json; how many each op has."""
    parts = {path.stem.removeprefix("bench-"): path for path in sorted(folder.glob("bench-*.json"))}
    rows = {op: json.loads(path.read_text()) for op, path in parts.items()}
    (folder / "bench.json").write_text(json.dumps([row for each in rows.values() for row in each], indent=1) + "\n")
    for path in parts.values():
        path.unlink()
    return {op: len(each) for op, each in rows.items()}


def profiled_step(folder: Path) -> dict:
    """Time, images/s and memory of the step that `misplace profile` measured; empty where it wrote none."""
    file = folder / "profile.json"
    return json.loads(file.read_text())["step"] if file.is_file() else {}


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
