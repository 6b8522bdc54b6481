"""metrics.jsonl, one JSON object a line, and the same numbers as TensorBoard scalars."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misplace.engine.durable import replace_file, write_all
from misplace.engine.errors import UserError
from misplace.engine.plain_json import plain

# Every other key of a line names a loss term. knn only where it was measured.
COMMON_KEYS = (
    "step",
    "epoch",
    "images",
    "seconds",
    "loss",
    "bce",
    "auroc",
    "lr",
    "grad_norm",
    "images_per_s",
    "data_wait",
    "knn",
)


class MetricsLog:
    """Appends one line per call; a kill can tear only the last one, and resuming mends it.

    Keys of a line: COMMON_KEYS and one per loss term. A non-finite number is written as null.

    path: metrics.jsonl. tensorboard: folder for the event files, None for none. resume_step: the step of the
    checkpoint that the run goes on from; later lines, which the killed run wrote ahead, and lines that are
    not whole are taken out first (`discarded` counts them). None starts both anew. UserError: the file cannot
    be written (no permission, disk full).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        tensorboard: Path | str | None = None,
        resume_step: int | None = None,
    ) -> None:
        self._path = Path(path)
        self.discarded = 0
        try:
            self._rewind(resume_step)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._failed(error) from None
        self._scalars, self._start_scalars = None, None
        if tensorboard is not None:
            # Imported here: it takes a second or two, which a command that only reads need not wait for.
            from torch.utils.tensorboard import SummaryWriter

            purge_step = None if resume_step is None else resume_step + 1
            # Started by the first row: it has threads, and the data workers of other runs may not be forked yet.
            self._start_scalars = lambda: SummaryWriter(str(tensorboard), purge_step=purge_step, flush_secs=10)

    def _rewind(self, resume_step: int | None) -> None:
        if resume_step is None:
            replace_file(self._path, b"")
            return
        before = self._path.read_bytes() if self._path.exists() else b""
        lines = [line for line in before.split(b"\n") if line]
        kept = [line for line in lines if (row := _row_of(line)) is not None and row["step"] <= resume_step]
        self.discarded = len(lines) - len(kept)
        after = b"".join(line + b"\n" for line in kept)
        if after != before:
            replace_file(self._path, after)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends `metrics`, which has an int "step"; numbers may be tensors of one element."""
        row = plain(metrics)
        if type(row.get("step")) is not int:
            raise ValueError(f"metrics need an int step, got {row.get('step')!r}")
        try:
            write_all(self._file, (json.dumps(row, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise self._failed(error) from None
        if self._start_scalars is not None:
            self._scalars = self._scalars or self._start_scalars()
            for key, value in row.items():
                if key != "step" and type(value) in (int, float):
                    self._scalars.add_scalar(key, value, row["step"])

    def close(self) -> None:
        os.close(self._file)
        if self._scalars is not None:
            self._scalars.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, error: OSError) -> UserError:
        mend = "make room or mend the permissions, then --resume"
        return UserError(f"{self._path}: cannot be written: {error.strerror}; {mend}")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in file order; a line torn by a kill is left out. Missing file: no rows."""
    path = Path(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for line in lines if (row := _row_of(line)) is not None]


def _row_of(line: bytes) -> dict[str, Any] | None:
    """The object on a whole line, None for a line that is torn or damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None
