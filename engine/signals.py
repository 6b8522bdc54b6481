"""SIGTERM and SIGINT as a flag that the trainer looks at once per step."""

import os
import signal
import threading
from types import FrameType


class StopSignals:
    """While the block runs, SIGTERM and SIGINT only set `stop_requested`; a second SIGINT interrupts.

    Old handlers come back at the end. Forked data workers ignore both, since a terminal or a scheduler
    signals the whole group: the trainer ends them once it has saved. Outside the main thread, where Python
    takes no handlers, the block changes nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first one
        self._owner = os.getpid()
        self._old: dict[int, object] = {}

    @property
    def stop_requested(self) -> bool:
        return self.received is not None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            # None: a handler that was not set from Python, and cannot be set from it
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
