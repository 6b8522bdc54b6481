"""Work done ahead of the step, in threads or forked processes, that can be made to stand still."""

import contextlib
import threading
from collections.abc import Callable, Iterator

POLL_S = 0.5


class Gate:
    """Open at first. primitives: `threading`, or a multiprocessing context; workers: how many pass at once."""

    def __init__(self, workers: int = 1, primitives=threading) -> None:
        self._open, self._workers = primitives.Event(), workers
        self._free = primitives.Semaphore(workers)
        self._open.set()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around one piece of work: waits until the gate is open."""
        self._open.wait()
        with self._free:
            yield

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def close(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Returns when nothing is worked on any more; gives up waiting where the workers are not `alive`."""
        if not self.is_open:
            return
        self._open.clear()
        for _ in range(self._workers):
            while not self._free.acquire(timeout=POLL_S):
                if not alive():
                    return

    def open(self) -> None:
        """Lets work go on."""
        if self.is_open:
            return
        for _ in range(self._workers):
            self._free.release()
        self._open.set()


class Pausable:
    """What works ahead behind `_gate` (none: nothing does), with `pause` and `resume`."""

    _gate: Gate | None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block nothing is worked on ahead; afterwards again, unless it was paused before."""
        was_open = self._gate is not None and self._gate.is_open
        self.pause()
        try:
            yield
        finally:
            if was_open:
                self.resume()
