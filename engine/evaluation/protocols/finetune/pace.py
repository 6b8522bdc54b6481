"""Lines that say how a long training goes."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from misplace.engine.clock import format_duration
from misplace.engine.errors import UserError

MEASURED_STEPS = 10  # behind the first, which is slow
LINE_EVERY = 20.0  # seconds


class Pace:
    """Counts the steps of several trainings: once an estimate of all, then a line at an epoch's end, not too often."""

    def __init__(
        self, steps: int, batch_size: int, say: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ):
        self.steps, self.batch_size, self.say, self.now = steps, batch_size, say, now
        self.done, self._losses = 0, []
        self._said_at = self._epoch_at = now()
        self._measured_from = 0.0

    def begin(self) -> None:
        """A training begins."""
        self._losses, self._epoch_at = [], self.now()

    def step(self, loss: Tensor) -> None:
        """A step is over."""
        self.done += 1
        self._losses.append(loss)
        if self.done == 1:
            self._measured_from = self.now()
        if self.done == MEASURED_STEPS + 1:
            each = (self.now() - self._measured_from) / MEASURED_STEPS
            left = format_duration(each * (self.steps - self.done))
            self.say(f"finetune: {self.steps} steps of {self.batch_size} images, about {left} to go")

    def epoch(self, name: str, number: int, of: int) -> None:
        """An epoch is over. UserError where its loss is not finite."""
        loss, now = float(torch.stack(self._losses).mean()), self.now()
        if not abs(loss) < float("inf"):
            raise UserError(f"{name}: the loss is {loss} in epoch {number}: lower --finetune.base-lr")
        speed = len(self._losses) * self.batch_size / max(now - self._epoch_at, 1e-9)
        if now - self._said_at >= LINE_EVERY:
            self.say(f"{name}: epoch {number} of {of}, loss {loss:.3f}, {speed:.0f} images/s")
            self._said_at = now
        self.begin()
