"""A clock that moves only when a test says so."""

import pytest

from misplace.bench import timing


class Clock:
    """Stands in for the module `time`, in seconds."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, seconds: float):
        """A call that lasts `seconds`."""

        def call():
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made
