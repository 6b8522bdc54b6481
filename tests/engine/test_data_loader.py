"""The loader: the same batches for any number of workers and any start, and no process left behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from misplace.engine.data import AugmentConfig, load_eval, make_loader, open_source, render_view
from misplace.engine.data.augmentation import draw_view_parameters
from misplace.engine.data.decode import decode, open_sample
from misplace.engine.data.evaluation import centre_view
from misplace.engine.errors import UserError

SETTINGS = {"batch_size": 8, "num_views": 2, "image_size": 16, "augment": AugmentConfig(), "seed": 11}


def batches(source, count, **settings):
    with make_loader(source, **{**SETTINGS, **settings}) as made:
        return [next(made) for _ in range(count)]


def same(a, b) -> bool:
    views = all(torch.equal(x, y) for x, y in zip(a.views, b.views))
    return views and torch.equal(a.index, b.index) and a.epoch == b.epoch and a.failures == b.failures


def same_all(first, second) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


@pytest.fixture
def source(corrupt_folder):
    return open_source(str(corrupt_folder))


def test_any_number_of_workers_gives_the_same_bits(source):
    expected = batches(source, 7)
    assert {batch.epoch for batch in expected} == {0, 1} and any(batch.failures for batch in expected)
    for workers in (1, 2, 3):
        assert same_all(batches(source, 7, workers=workers), expected)


def test_starting_later_is_skipping(source):
    expected = batches(source, 9)
    for start, workers in ((5, 0), (5, 2), (1, 2)):
        assert same_all(batches(source, 9 - start, start_step=start, workers=workers), expected[start:])


def test_views_are_rendered_from_the_drawn_parameters(photo_folder):
    source = open_source(str(photo_folder))
    batch = batches(source, 1)[0]
    assert batch.index.dtype == torch.int64 and batch.failures == ()
    assert all(view.shape == (8, 16, 16, 3) and view.dtype == torch.uint8 for view in batch.views)
    for row, sample in enumerate(batch.index.tolist()):
        image = decode(open_sample(source, sample), 3)
        size = torch.tensor([[image.height, image.width]])
        for view in (0, 1):
            kind = SETTINGS["augment"].view_kinds(2, 16)[view]
            drawn = draw_view_parameters(torch.tensor([sample]), size, SETTINGS["augment"], kind, 11, 0, view)
            assert np.array_equal(batch.views[view][row], render_view(image, drawn.rows()[0], 16))


def test_views_and_epochs_differ(source):
    first, *_, later = batches(source, 5)
    assert (first.views[0] != first.views[1]).float().mean() > 0.5
    assert later.epoch == 1 and not same(first, later)


def test_starting_workers_draws_nothing_from_the_global_generator(source):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(source, 1, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_handler_is_left_behind(source):
    numbers = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with make_loader(source, **SETTINGS, workers=1) as made:
        next(made)
        assert [signal.getsignal(number) for number in numbers] == before
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(numbers)


def test_a_failed_step_is_one_line_with_and_without_workers(tmp_path, bad_files):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(bad_files["text.jpg"][0])
    for workers in (0, 1):
        with pytest.raises(UserError) as error:
            batches(open_source(str(tmp_path)), 1, batch_size=2, workers=workers)
        assert "\n" not in str(error.value) and "too many images in a row" in str(error.value)


def test_settings_that_cannot_be(source):
    for change, says in (
        ({"batch_size": 33}, "fewer than a batch of 33"),
        ({"num_views": 3}, "blur_p needs 3 values"),
    ):
        with pytest.raises(UserError, match=says):
            make_loader(source, **{**SETTINGS, **change})


def test_too_little_shared_memory_is_said_before_workers_die_of_it(source, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 10))
    with pytest.raises(UserError, match=r"MiB of /dev/shm.*--data.prefetch"):
        make_loader(source, **SETTINGS, workers=1)
    make_loader(source, **SETTINGS, workers=0).close()


def test_a_killed_worker_is_one_line(source):
    with make_loader(source, **SETTINGS, workers=2, prefetch=1) as made:
        next(made)
        os.kill(made._processes[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"a data worker died \(killed by SIGKILL\)"):
            for _ in range(6):
                next(made)


@pytest.mark.parametrize("stuck", [False, True])
def test_close_ends_the_workers(source, stuck, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    made = make_loader(source, **SETTINGS, workers=2)
    next(made)
    workers = list(made._processes)
    if stuck:
        os.kill(workers[1].pid, signal.SIGSTOP)
    made.close()
    made.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(made)


TRAINER = """
import os, signal, sys, time, torch
from misplace.engine.data import AugmentConfig, make_loader, open_source
torch.set_num_threads(1)
stop = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background inherits it ignored
signal.signal(signal.SIGTERM, lambda *_: (stop.append(os.getpid()), print("stop", os.getpid(), flush=True)))
source = open_source(sys.argv[1])
settings = dict(batch_size=8, num_views=2, image_size=16, augment=AugmentConfig(), seed=1, workers=2)
with make_loader(source, **settings) as loader:
    next(loader)
    print(os.getpid(), *(p.pid for p in loader._processes), flush=True)
    while not stop:
        next(loader)
        time.sleep(0.01)
    for _ in range(20):
        next(loader)
print("saved", flush=True)
"""


@pytest.fixture
def trainer(photo_folder):
    """A process group as a terminal or a scheduler sees it, its workers' pids, and its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(photo_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = list(map(int, process.stdout.readline().split()))
    yield process, pids[1:]
    with contextlib.suppress(ProcessLookupError):  # workers too: one left behind would hold the pipes open for ever
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(map(gone, pids)):
        time.sleep(0.05)
    return all(map(gone, pids))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc to look for processes in")


@needs_proc
def test_a_groups_sigterm_stops_the_trainer_once_and_no_worker_before_it(trainer):
    process, workers = trainer
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert output.split("\n")[:2] == [f"stop {process.pid}", "saved"] and errors == ""
    assert process.returncode == 0 and wait_until_gone(workers, 10)


@needs_proc
def test_ctrl_c_leaves_no_worker_and_no_word_from_one(trainer):
    process, workers = trainer
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors and "orker process" not in errors
    assert wait_until_gone(workers, 10)


@needs_proc
def test_a_killed_trainer_leaves_no_orphans(trainer):
    process, workers = trainer
    process.kill()
    process.wait()
    assert wait_until_gone(workers, 30)


LATE = """
import os, signal, sys, time
from misplace.engine.data import AugmentConfig, loader, make_loader, open_source
settle_in = loader.settle_in
def late(*args, **options):  # the worker comes to life when its trainer is gone
    while os.getppid() == int(os.environ["TRAINER"]):
        time.sleep(0.01)
    settle_in(*args, **options)
loader.settle_in = late
os.environ["TRAINER"] = str(os.getpid())
settings = dict(batch_size=8, num_views=2, image_size=16, augment=AugmentConfig(), seed=1, workers=1)
with make_loader(open_source(sys.argv[1]), **settings) as made:
    print(*(p.pid for p in made._processes), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_proc
def test_a_trainer_killed_while_its_workers_start_leaves_no_orphans(photo_folder):
    command = [sys.executable, "-c", LATE, str(photo_folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        workers = list(map(int, process.stdout.readline().split()))
        assert len(workers) == 1 and wait_until_gone(workers, 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def test_evaluation_view_is_the_middle(make_image, tmp_path):
    (tmp_path / "a.png").write_bytes(make_image(4, (96, 64), "PNG"))
    (tmp_path / "b.png").write_bytes(make_image(5, (32, 32), "PNG"))
    source = open_source(str(tmp_path))
    images, kept = load_eval(source, torch.tensor([1, 0, 1]), 32)
    assert kept.tolist() == [1, 0, 1] and images.dtype == torch.uint8
    exact = decode(open_sample(source, 1), 3)
    assert np.array_equal(images[0], np.asarray(exact)) and torch.equal(images[0], images[2])
    wide = decode(open_sample(source, 0), 3)
    assert np.array_equal(images[1], np.asarray(wide.resize((32, 32), 3, box=(20, 4, 76, 60))))


def test_evaluation_never_throws_pixels_away_that_are_needed(make_image, tmp_path):
    (tmp_path / "a.png").write_bytes(make_image(4, (40, 34), "PNG"))
    image = decode(open_sample(open_source(str(tmp_path)), 0), 3)
    assert np.array_equal(centre_view(image, 32), np.asarray(image.resize((32, 32), 3, box=(4, 1, 36, 33))))
    assert np.array_equal(centre_view(image, 48), np.asarray(image.resize((48, 48), 3, box=(3, 0, 37, 34))))
