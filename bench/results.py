"""Rows of measurement: as JSON for a tool, as CSV lines for the history in git."""

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from misplace.engine.errors import UserError


@dataclass(frozen=True)
class Row:
    """One implementation against one peer. Times in ms per call, rates in units a second."""

    op: str
    impl: str
    against: str
    mode: str
    shape: str
    dtype: str
    ms: float  # median, as p20 and p80 of the same samples
    p20: float
    p80: float
    against_ms: float
    against_p20: float
    against_p80: float
    ratio: float  # against / ours, median over rounds
    self_p20: float  # ours / ours over the same rounds: what a ratio has to exceed
    self_p80: float
    counts: bool
    error: float
    gb_s: float
    tflop_s: float
    floor_share: float
    device: str
    threads: int
    driver: str
    versions: str
    commit: str
    date: str


COLUMNS = [field.name for field in dataclasses.fields(Row)]


def check_target(path: Path) -> None:
    """UserError where rows could not be written: asked before the minutes of measuring, not after."""
    if not path.parent.is_dir():
        raise UserError(f"bench: {path.parent} is no folder to write {path.name} in; make it first")
    if path.is_dir():
        raise UserError(f"bench: {path} is a folder; name a file")
    if path.suffix == ".csv" and path.exists() and _header(path) != COLUMNS:
        raise UserError(f"bench: {path} has other columns than this version writes; move it away")


def _header(path: Path) -> list[str] | None:
    with path.open(newline="") as file:
        return next(csv.reader(file), None)


def append_csv(path: Path, rows: list[Row]) -> None:
    """Adds the rows below the ones there."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            values = dataclasses.asdict(row)
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()})


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
