"""The progress of a whole comparison: one line per recipe below one bar."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..clock import Horizon, format_duration
from ..progress import describe
from .plan import Plan, Slice

PLAIN_INTERVAL_S = 10.0


class ComparisonDisplay:
    """A context manager. `of(number)` is where the run of that variant says how far it is."""

    def __init__(
        self, plan: Plan, *, console: Console | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._now = plan, now
        self._console = console or Console(highlight=False)
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._interval = 0.25 if self._is_live else PLAIN_INTERVAL_S
        self._shown_at = -math.inf
        self._rows: dict[int, dict[str, Any]] = {}
        self._turn, self._seed = Slice(0, 0, 0.0), 0
        self._live: Live | None = None

    def __enter__(self) -> "ComparisonDisplay":
        self._rows.clear()
        if self._is_live:  # without a refresh thread: data workers are forked while this is alive
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def of(self, number: int) -> "RunDisplay":
        return RunDisplay(self, number)

    def turn(self, turn: Slice, seed: int) -> None:
        """A slice begins."""
        self._turn, self._seed = turn, seed

    def update(self, number: int, row: Mapping[str, Any]) -> None:
        """A row of the run of variant `number`."""
        self._rows[number] = {**self._rows.get(number, {}), **row}
        if self._now() - self._shown_at >= self._interval:
            self._shown_at = self._now()
            if self._live:
                self._live.update(self._picture(), refresh=True)
            else:
                self.say(f"{self._position()} | {self._line(number)}")

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _position(self) -> str:
        share, left = self._share(), (1 - self._share()) * self._seconds
        seed = f"seed {self._seed + 1}/{self._plan.seeds} " if self._plan.seeds > 1 else ""
        return f"{seed}round {self._turn.round + 1}/{self._plan.rounds} {share:4.0%} ETA {format_duration(left)}"

    @property
    def _seconds(self) -> float:
        return self._plan.budget * self._plan.seeds * len(self._plan.variants)

    def _share(self) -> float:
        """Of the training time of all runs."""
        done = self._seed * self._plan.budget * len(self._plan.variants)
        done += sum(min(row["seconds"], self._plan.budget) for row in self._rows.values())
        return min(1.0, done / self._seconds)

    def _line(self, number: int) -> str:
        parts = describe(self._rows[number], Horizon(seconds=self._plan.budget))
        return f"{self._plan.variants[number].name} | {' | '.join(parts[:-1])}"  # the ETA is the whole plan's

    def _picture(self) -> Group:
        head = Table.grid(padding=(0, 1))
        head.add_row(Text(self._position()), ProgressBar(total=1.0, completed=self._share(), width=30))
        return Group(head, *(Text(self._line(number)) for number in sorted(self._rows)))


class RunDisplay:
    """One run's part of the display; opens and closes nothing."""

    def __init__(self, whole: ComparisonDisplay, number: int):
        self._whole, self._number = whole, number

    def __enter__(self) -> "RunDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, row: Mapping[str, Any]) -> None:
        self._whole.update(self._number, row)

    def message(self, text: str) -> None:
        self._whole.say(text)
