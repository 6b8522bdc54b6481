"""The progress of a run on the screen: a view of the metrics rows, which decides and measures nothing."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from misplace.engine.clock import Horizon, format_duration
from misplace.engine.metrics_log import COMMON_KEYS


class Display(Protocol):
    """Where a run says how far it is; a context manager."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, row: Mapping[str, Any]) -> None:
        """Takes a row of metrics.jsonl."""
        ...

    def message(self, text: str) -> None:
        """Takes a line to be told."""
        ...


class ProgressDisplay:
    """Shows rows of metrics: a live bar on a terminal, elsewhere a plain line every `interval` seconds.

    A row has the keys of metrics.jsonl, of which only step and seconds must be there; data_wait, auroc and
    knn are shares in [0, 1]. What a row does not have (knn, mostly) stays as last seen.
    """

    def __init__(
        self,
        horizon: Horizon,
        *,
        console: Console | None = None,
        interval: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._horizon = horizon
        self._console = console or Console(highlight=False)
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._interval = 0.25 if live else interval
        self._now = now
        self._shown_at = -math.inf
        self._row: dict[str, Any] = {}
        self._fresh = False  # whether the row has not been shown yet
        # No refresh thread: data workers are forked while this is alive.
        self._live = Live(console=self._console, auto_refresh=False) if live else None

    def __enter__(self) -> "ProgressDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._fresh:
            self._show()
        if self._live:
            self._live.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Takes a row; shows it when the last one has been up for the interval."""
        self._row, self._fresh = {**self._row, **row}, True
        if self._now() - self._shown_at >= self._interval:
            self._show()

    def message(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _show(self) -> None:
        self._shown_at, self._fresh = self._now(), False
        if self._live:
            self._live.update(self._bar(), refresh=True)
        else:
            self.message(" | ".join(describe(self._row, self._horizon)))

    def _bar(self) -> Group:
        share = self._horizon.progress(self._row["step"], self._row["seconds"])
        position, *rest = describe(self._row, self._horizon)
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(position), ProgressBar(total=1.0, completed=share, width=30))
        return Group(line, Text(" | ".join(rest)))


def describe(row: Mapping[str, Any], horizon: Horizon) -> list[str]:
    """The parts of a progress line, the position first; only what the row has."""
    step, seconds = row["step"], row["seconds"]
    position = f"step {step}" if horizon.steps is None else f"step {step}/{horizon.steps}"
    parts = [f"{position} {horizon.progress(step, seconds):4.0%}"]
    if row.get("images_per_s") is not None:
        parts.append(f"{row['images_per_s']:.0f} images/s")
    if row.get("data_wait") is not None:
        parts.append(f"data wait {row['data_wait']:.0%}")
    terms = [key for key in row if key not in COMMON_KEYS]
    losses = [f"{key} {_number(row[key])}" for key in ["loss", *terms, "bce", "auroc"] if key in row]
    parts += [" ".join(losses)] if losses else []
    if row.get("knn") is not None:
        parts.append(f"k-NN {row['knn']:.1%}")
    left = horizon.remaining_seconds(step, seconds)
    return parts if left is None else [*parts, f"ETA {format_duration(left)}"]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-" if value is None else str(value)


def print_implementations(implementations: Mapping[str, str], console: Console | None = None) -> None:
    """The table of op -> implementation that a run prints at its start."""
    table = Table("op", "implementation", box=None, pad_edge=False)
    for op, implementation in implementations.items():
        table.add_row(Text(op), Text(str(implementation)))
    (console or Console(highlight=False)).print(table)
