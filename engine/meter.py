"""Throughput and data wait between two readings."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Meter:
    """images_per_s counts each image once, however many views it has; data_wait is the share spent waiting.

    now: a monotonic clock in seconds.
    """

    def __init__(self, batch_size: int, now: Callable[[], float] = time.perf_counter):
        self._batch_size, self._now = batch_size, now
        self._stopped: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._since, self._waited, self._steps = self._now(), 0.0, 0

    @contextmanager
    def waiting(self, hidden: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Time inside the block is spent waiting for data, unless `hidden` says at its end: by work that goes on."""
        before = self._now()
        yield
        self._waited += 0.0 if hidden() else self._now() - before

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Time inside the block counts for nothing."""
        before = self._now()
        yield
        self._since += self._now() - before

    @contextmanager
    def running(self) -> Iterator[None]:
        """For a run in slices: time counts inside the block only."""
        if self._stopped is not None:
            self._since += self._now() - self._stopped
        self._stopped = None
        yield
        self._stopped = self._now()

    def count_step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """images_per_s and data_wait (share, 0 to 1) since the last reading, and starts anew."""
        seconds = max(self._now() - self._since, 1e-9)
        reading = {
            "images_per_s": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self._restart()
        return reading
