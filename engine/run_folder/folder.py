"""What a run folder holds, and the rule that nothing in it is overwritten unless asked."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from misplace.engine.durable import replace_file, temporary_name
from misplace.engine.errors import UserError

from .environment import describe_environment
from .lock import RunLock

_LOCK = ".lock"
# config.json goes last when a run is deleted: a folder that has it is a run.
_OWNED = (
    "environment.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "quarantine.jsonl",
    "capture",
    "pictures.npz",
    "report.html",
    "summary.json",
    "config.json",
)


def delete_owned(folder: Path, names: Iterable[str]) -> None:
    """These files and folders of `folder` in this order, as far as they are there, and nothing else."""
    for name in names:
        owned = folder / name
        if owned.is_dir() and not owned.is_symlink():
            shutil.rmtree(owned)
        else:
            owned.unlink(missing_ok=True)


class RunFolder:
    """Paths of a run. `create` makes one that this process may write; `open` one to read.

    config.json (resolved), environment.json, metrics.jsonl, tensorboard/, checkpoints/, quarantine.jsonl,
    capture/, pictures.npz, report.html, summary.json.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.quarantine = self.path / "quarantine.jsonl"
        self.capture = self.path / "capture"
        self.pictures = self.path / "pictures.npz"
        self.report = self.path / "report.html"
        self.summary = self.path / "summary.json"
        self.resumed = False  # True when `create(resume=True)` found a run to go on with
        self._lock: RunLock | None = None

    @classmethod
    def create(cls, path: Path | str, *, overwrite: bool = False, resume: bool = False) -> "RunFolder":
        """Claims the folder for this process until `release` or its end.

        resume goes on with the run that is there (or starts it, where a killed one left nothing but the
        folder); overwrite deletes that run's files first, and only those. UserError: there is a run and
        neither was asked for, other files lie there, no folder to resume, another process writes there.
        """
        if overwrite and resume:
            raise UserError("--resume and --overwrite exclude each other: give one")
        run = cls(path)
        try:
            run._check(overwrite, resume)
            run.path.mkdir(parents=True, exist_ok=True)
            run._lock = RunLock(run.path / _LOCK)
            run._check(overwrite, resume)  # again: another process may have been here before the lock
            if overwrite:
                delete_owned(run.path, _OWNED)
        except OSError as error:
            run.release()
            raise UserError(f"{path}: {error.strerror}; choose another --out or mend it") from None
        except UserError:
            run.release()
            raise
        run.resumed = run.config.exists()
        return run

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """A run to read from; UserError when `path` is not one."""
        run = cls(path)
        if not run.config.is_file():
            raise UserError(f"{path}: not a run folder (it has no config.json); give the --out of a run")
        return run

    def release(self) -> None:
        """Lets another process write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """config.json, in one step. TypeError / ValueError for what JSON cannot say (tuples become lists)."""
        self._write_json(self.config, config)

    def read_config(self) -> dict[str, Any]:
        """config.json as it was written; UserError when it is missing or not JSON."""
        return self._read_json(self.config)

    def write_environment(self, *, device: str, implementations: Mapping[str, str]) -> None:
        """environment.json: what this run computes with; the sessions it was resumed from stay in `earlier`.

        device: as torch names it. implementations: op -> the implementation chosen for it.
        """
        now = describe_environment(device, implementations)
        before = self._read_json(self.environment) if self.environment.exists() else {}
        earlier = before.pop("earlier", [])
        self._write_json(self.environment, {**now, "earlier": earlier + ([before] if before else [])})

    def _check(self, overwrite: bool, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; choose another --out")
        if resume and not self.path.exists():
            raise UserError(f"{self.path}: no run to resume; check --out, or leave out --resume to start one")
        transient = {_LOCK, temporary_name(self.config).name}
        names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if names <= transient:
            return
        if "config.json" not in names:
            raise UserError(f"{self.path}: holds files but no run (no config.json); choose another --out")
        if not (overwrite or resume):
            options = "--resume goes on with it, --overwrite deletes it, --out DIR writes elsewhere"
            raise UserError(f"{self.path}: already holds a run; {options}")

    def _write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, allow_nan=False, indent=2) + "\n"
        try:
            replace_file(path, text.encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; make room or mend it") from None

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}); restore it or use --overwrite") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: is not a JSON object; restore it or use --overwrite")
        return value
