"""Training time, durations as people write them, and how far a run is to go."""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from misplace.engine.errors import UserError

_DURATION = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?")
_UNITS = (86400.0, 3600.0, 60.0, 1.0)


class TrainingClock:
    """Seconds spent training: data loading included, evaluation and whatever else is paused excluded.

    elapsed: seconds of the run before this process, from its checkpoint. now: a monotonic clock in seconds.
    """

    def __init__(self, elapsed: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self._before = elapsed
        self._now = now
        self._since: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds so far; stands still until `start` and while paused."""
        return self._before + (0.0 if self._since is None else self._now() - self._since)

    def start(self) -> None:
        """Runs the clock, also after `pause`; no effect on one that runs."""
        if self._since is None:
            self._since = self._now()

    resume = start

    def pause(self) -> None:
        self._before, self._since = self.elapsed, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block is not training time."""
        was_running = self._since is not None
        self.pause()
        try:
            yield
        finally:
            if was_running:
                self.resume()


def parse_duration(text: str) -> float:
    """Seconds of "90s", "5m", "1h30m", "2d", "1.5h" or "300"; UserError for anything else, and for zero."""
    written = text.strip().lower().replace(" ", "")
    matched = _DURATION.fullmatch(written)
    try:
        parts = [float(part) if part else 0.0 for part in matched.groups()] if matched and written else [0.0]
    except ValueError:  # "1.2.3s"
        parts = [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, _UNITS))
    if not 0.0 < seconds < math.inf:
        raise UserError(f"duration {text!r}: not a time above zero; write it as 300, 90s, 5m or 1h30m")
    return seconds


def format_duration(seconds: float) -> str:
    """ "1h02m", "3m05s", "7s"; whole units, rounded."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


@dataclass(frozen=True)
class Horizon:
    """How long a run is: steps, or seconds of training time, one of them. UserError unless above zero."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("a horizon is steps or seconds, one of them")
        length = self.seconds if self.steps is None else self.steps
        if not 0 < length < math.inf:
            raise UserError(f"length of the run: {length}; --steps, --epochs and --budget must be above zero")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run, in [0, 1], that `step` steps and `seconds` of training time make."""
        share = seconds / self.seconds if self.steps is None else step / self.steps
        return min(1.0, max(0.0, share))

    def done(self, step: int, seconds: float) -> bool:
        return self.progress(step, seconds) >= 1.0

    def remaining_seconds(self, step: int, seconds: float) -> float | None:
        """Training time still to go at the pace so far; None before anything is known of the pace."""
        if self.seconds is not None:
            return max(0.0, self.seconds - seconds)
        return seconds / step * max(0, self.steps - step) if step else None
