"""The list of files that could not be used: each named once, and a limit to how many a run accepts."""

import json
from collections.abc import Iterable
from pathlib import Path

from misplace.engine.errors import UserError

from .batch import Failure

__all__ = ["Failure", "Quarantine"]


class Quarantine:
    """Appends each distinct file to a JSON-lines file: index, path, reason.

    file: quarantine.jsonl of the run; what an earlier run wrote there counts, and a line cut off by a kill
    is dropped. max_share: share of the source's num_samples above which `add` raises UserError.
    """

    def __init__(self, file: Path, num_samples: int, max_share: float = 0.001):
        self.file, self.num_samples, self.max_share = Path(file), num_samples, max_share
        self.paths: set[str] = set()
        if self.file.exists():
            self._read()

    def __len__(self) -> int:
        """How many distinct files there are."""
        return len(self.paths)

    def add(self, failures: Iterable[Failure]) -> None:
        """Write what is new; raise UserError once the share of bad files is above the limit."""
        new = {failure.path: failure for failure in failures if failure.path not in self.paths}
        if not new:
            return
        with self.file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(failure._asdict()) + "\n" for failure in new.values())
        self.paths |= new.keys()
        if len(self.paths) > self.max_share * self.num_samples:
            last = list(new.values())[-1]
            raise UserError(
                f"{len(self.paths)} of {self.num_samples} images cannot be read, more than the share of"
                f" {self.max_share:g} allowed; last {last.path} ({last.reason}); all are in {self.file}:"
                " mend or remove them, or raise --data.max-bad-share"
            )

    def _read(self) -> None:
        text = self.file.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with self.file.open("r+b") as out:
                out.truncate(len(whole))
        try:
            self.paths = {json.loads(line)["path"] for line in whole.splitlines()}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.file} is not a list of quarantined files: move it away") from None
