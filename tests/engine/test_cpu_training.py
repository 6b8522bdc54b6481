"""Training on the CPU: who runs where, denormals, and memory that stays."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from misplace.engine import cpu_training as module
from misplace.engine.cpu_training import Cores, cpu_training, share_cores
from misplace.engine.data import AugmentConfig, make_loader, open_source
from misplace.engine.trainer import pretrain

FAULTS = Path(__file__).with_name("faults.py")
TINY = 713624  # the bits of an fp32 of 1e-39
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin threads")


def threads_of(process: int) -> set[frozenset[int]]:
    """The sets of cores that the threads of a process may run on."""
    found = set()
    for thread in os.listdir(f"/proc/{process}/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            found.add(frozenset(os.sched_getaffinity(int(thread))))
    return found


@pytest.mark.parametrize(
    "allowed, workers, trainer, data",
    [
        (range(8), 1, range(7), [7]),
        (range(8), 2, range(6), [6, 7]),
        (range(8), 7, range(6), [6, 7]),  # no more than a quarter
        (range(4), 3, range(3), [3]),
        ([9, 2, 30, 4, 17], 4, [2, 4, 9, 17], [30]),  # what a container or numactl leaves
        (range(64), 16, range(48), range(48, 64)),
        (range(3), 2, range(3), range(3)),  # too few to share
        (range(1), 1, range(1), range(1)),
        (range(8), 0, range(8), range(8)),  # nobody to share with
    ],
)
def test_who_gets_which_cores(allowed, workers, trainer, data):
    assert share_cores(allowed, workers) == Cores(tuple(trainer), tuple(data))


@needs_affinity
def test_trainer_and_workers_keep_to_their_cores_and_leave_them(photo_folder, monkeypatch, capsys):
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cores = sorted(before)
    if len(cores) < 2:
        pytest.skip("one core cannot be shared")
    apart = Cores((cores[0],), (cores[-1],))
    monkeypatch.setattr(module, "share_cores", lambda *_: apart)
    settings = {"batch_size": 8, "num_views": 2, "image_size": 16, "augment": AugmentConfig(), "seed": 0}
    torch.set_num_threads(2)
    torch.ones(1 << 20).mul(2)  # a second thread that computes, started before
    try:
        with cpu_training(2) as given:
            source = open_source(str(photo_folder))
            with make_loader(source, **settings, workers=2, worker_cores=given.workers) as loader:
                next(loader)
                for process in loader._processes:
                    assert threads_of(process.pid) == {frozenset(apart.workers)}
            assert threads_of(os.getpid()) == {frozenset(apart.trainer)} and torch.get_num_threads() == 1
        assert threads_of(os.getpid()) == {frozenset(before)} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert f"1 threads on cores {cores[0]}, data workers on {cores[-1]}" in capsys.readouterr().out


@needs_affinity
@pytest.mark.parametrize("workers, cores", [(0, 8), (2, 3)])
def test_nothing_moves_without_workers_or_with_few_cores(workers, cores, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("pinned"))
    threads = torch.get_num_threads()
    with cpu_training(workers):
        assert torch.get_num_threads() == threads
    assert "cores" not in capsys.readouterr().out


def test_a_system_that_cannot_pin(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    with cpu_training(2) as cores:
        assert cores is None


def kept_denormals() -> set[int]:
    """The bits of a denormal after a multiplication by one in every compute thread."""
    tiny = torch.full((1 << 20,), TINY, dtype=torch.int32).view(torch.float32)
    return set(tiny.mul(1.0).view(torch.int32).unique().tolist())


def test_denormals_are_zero_in_every_thread_while_it_trains():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert kept_denormals() == {TINY}  # the second thread is there already
        with cpu_training(0):
            assert kept_denormals() == {0}
        assert kept_denormals() == {TINY}
    finally:
        torch.set_num_threads(threads)


def test_a_step_takes_no_new_pages_once_freed_memory_is_kept(images):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, FAULTS, images], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    faults = json.loads(done.stdout)
    print(faults)
    assert faults["kept"] and faults["before"] > 1000
    assert faults["after"] * 10 <= faults["before"]


def test_a_run_says_what_was_done(runs, images, tmp_path, capsys):
    pretrain(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run", steps=1))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("CPU: "))
    assert line.endswith("denormals are zero, freed memory is kept")
