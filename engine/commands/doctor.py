"""misplace doctor [--replay CAPTURE]: what this machine has, and how to mend what it lacks."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..doctor import run
from .parsing import parse


@dataclass(frozen=True)
class Doctor:
    """Check this machine, or replay the captured step of a run that stopped on a non-finite loss."""

    replay: Path | None = None
    """A folder RUN/capture/capture-NNNN."""


def main(argv: list[str]) -> int:
    """Print the findings, or what the captured step computes; returns 1 where there is a problem."""
    options = parse(Doctor, argv, prog="misplace doctor")
    if options.replay is None:
        return run()
    from ..non_finite import replay

    print(json.dumps(replay(options.replay)))
    return 0
