"""What a comparison leaves: plan.json, slices.jsonl, rows.jsonl, runs/, comparison.json, report.html."""

import json
import os
from pathlib import Path

from ..durable import replace_file, write_all
from ..errors import UserError
from ..run_folder.folder import delete_owned
from ..run_folder.lock import RunLock

OWNED = ("slices.jsonl", "rows.jsonl", "runs", "comparison.json", "report.html", "plan.json")


class ComparisonFolder:
    """Locked for this process. A folder with the same plan is gone on with; with another one it is refused.

    slices.jsonl: a line per slice that is over and saved; rows.jsonl: one per encoder that is measured.
    """

    def __init__(self, path: Path, plan: dict, *, overwrite: bool = False):
        self.path = path
        self.report, self.result = path / "report.html", path / "comparison.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(path / ".lock")
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            if overwrite:
                delete_owned(path, OWNED)
            self._claim(plan)
            self.slices, self.rows = Journal(path / "slices.jsonl"), Journal(path / "rows.jsonl")
        except OSError as error:
            self._lock.release()
            raise _unusable(path, error) from None
        except UserError:
            self._lock.release()
            raise

    def run(self, name: str, seed: int) -> Path:
        """The run folder of one run."""
        return self.path / "runs" / f"{name}-seed{seed}"

    def write(self, path: Path, data: bytes) -> None:
        """In one step."""
        try:
            replace_file(path, data)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; make room, then go on") from None

    def __enter__(self) -> "ComparisonFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _claim(self, plan: dict) -> None:
        path = self.path / "plan.json"
        if path.exists():
            try:
                before = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                raise UserError(f"{path}: cannot be read; --overwrite starts anew, --out writes elsewhere") from None
            if before != plan:
                raise UserError(
                    f"{self.path}: holds another comparison; --overwrite deletes it, --out DIR writes elsewhere"
                )
            return
        if others := sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")):
            raise UserError(f"{self.path}: holds {others[0]} but no comparison; choose another --out")
        self.write(path, (json.dumps(plan, indent=1) + "\n").encode())


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: {error.strerror}; choose another --out or mend it")


class Journal:
    """Lines of JSON that are only ever added; one torn by a kill is dropped before the next is added."""

    def __init__(self, path: Path):
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        whole, _, torn = data.rpartition(b"\n")
        if torn:
            replace_file(path, whole + b"\n" if whole else b"")
        try:
            self.entries: list[dict] = [json.loads(line) for line in whole.split(b"\n") if line]
        except ValueError:
            raise UserError(f"{path}: is damaged; --overwrite starts the comparison anew") from None

    def add(self, entry: dict) -> None:
        """Durable when it returns."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            write_all(descriptor, (json.dumps(entry, allow_nan=False) + "\n").encode())
            os.fsync(descriptor)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}; make room, then go on") from None
        finally:
            os.close(descriptor)
        self.entries.append(entry)
