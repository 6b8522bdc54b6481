"""Work done ahead stands still while a run is paused, and none of it is lost."""

import threading
import time

import pytest
import torch

from misplace.engine.data import AugmentConfig, make_loader, open_source
from misplace.engine.data.dali import why_unavailable
from misplace.engine.data.gate import Gate

PIPELINES = ["pillow", pytest.param("dali", marks=pytest.mark.skipif(bool(why_unavailable()), reason="no DALI here"))]
SETTINGS = {"batch_size": 8, "num_views": 2, "image_size": 16, "augment": AugmentConfig(), "seed": 3}
PATIENCE_S = 20.0


def until(condition) -> None:
    """Waits for what another thread or process is about to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_close_waits_for_the_work_in_hand_and_holds_back_the_next():
    gate, done, may_end = Gate(), [], threading.Event()

    def work():
        for number in range(2):
            with gate.working():
                may_end.wait(PATIENCE_S)
                done.append(number)

    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: not gate._free._value)
    closer = threading.Thread(target=gate.close)
    closer.start()
    until(lambda: not gate.is_open)
    assert closer.is_alive() and done == []
    may_end.set()
    closer.join(PATIENCE_S)
    assert not closer.is_alive() and done == [0] and worker.is_alive()
    gate.open()
    worker.join(PATIENCE_S)
    assert done == [0, 1]


def test_closing_and_opening_twice_is_once():
    gate = Gate(3)
    gate.close()
    gate.close()
    gate.open()
    gate.open()
    for _ in range(3):
        gate._free.acquire()
    assert not gate._free.acquire(blocking=False)


def test_close_gives_up_on_the_dead():
    gate = Gate()
    gate._free.acquire()  # by a worker that was killed at its work
    gate.close(alive=lambda: False)
    assert not gate.is_open


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_with_pauses(pipeline, workers, photo_folder):
    source = open_source(str(photo_folder))
    with make_loader(source, **SETTINGS, workers=workers, pipeline=pipeline) as loader:
        expected = [next(loader) for _ in range(7)]
    with make_loader(source, **SETTINGS, workers=workers, pipeline=pipeline) as loader:
        loader.pause()
        found = []
        for _ in range(7):
            loader.resume()
            found.append(next(loader))
            loader.pause()
    for one, other in zip(expected, found):
        assert torch.equal(one.index, other.index)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_nothing_is_read_while_paused(pipeline, photo_folder, tmp_path):
    """Reads are counted in a file, since a worker process has its own memory."""
    count = tmp_path / "reads"
    count.write_bytes(b"")

    class Counted:
        def __init__(self, source):
            self._source = source

        def __getattr__(self, name):
            return getattr(self._source, name)

        def __len__(self):
            return len(self._source)

        def read(self, index):
            with open(count, "ab") as file:
                file.write(b".")
            return self._source.read(index)

    def reads():
        return len(count.read_bytes())

    source = Counted(open_source(str(photo_folder)))
    with make_loader(source, **SETTINGS, workers=1, prefetch=2, pipeline=pipeline) as loader:
        next(loader)
        loader.pause()
        before = reads()
        taken = 0
        with pytest.raises(TimeoutError):  # what was ready can be taken; then nothing comes
            while True:
                in_time(lambda: next(loader), 0.5)
                taken += 1
        assert reads() == before and taken <= 3
        loader.resume()
        until(lambda: reads() > before)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("workers", [0, 1])
def test_paused_for_a_block(pipeline, workers, photo_folder):
    source = open_source(str(photo_folder))
    with make_loader(source, **SETTINGS, workers=workers, pipeline=pipeline) as loader:
        gate = loader._gate
        with loader.paused():
            assert gate is None or not gate.is_open
        assert gate is None or gate.is_open
        loader.pause()
        with loader.paused():
            pass
        assert gate is None or not gate.is_open
        loader.resume()
        assert len(next(loader).index) == 8


def in_time(action, seconds: float) -> None:
    """Runs it in a thread; TimeoutError where it is not over in time."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
