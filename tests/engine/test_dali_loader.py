"""The DALI loader's thread: bounded memory, a clean end, nothing left behind."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from misplace.engine.data import AugmentConfig, make_loader, open_source

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
SETTINGS = {"batch_size": 8, "num_views": 2, "image_size": 16, "augment": AugmentConfig(), "seed": 1}

LONG = """
import resource, sys, torch
from misplace.engine.data import AugmentConfig, make_loader, open_source
torch.set_num_threads(1)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
settings = dict(batch_size=200, num_views=2, image_size=16, augment=AugmentConfig(), seed=1, workers=2, pipeline="dali")
with make_loader(open_source(sys.argv[1]), **settings) as loader:
    after = []
    for step in range(500):
        next(loader)
        if step in (50, 499):
            after.append(resident())
print(after[1] - after[0])
"""

INTERRUPTED = """
import os, signal, sys, threading, time
from misplace.engine.data import AugmentConfig, make_loader, open_source
signal.signal(signal.SIGINT, signal.default_int_handler)
settings = dict(batch_size=8, num_views=2, image_size=16, augment=AugmentConfig(), seed=1, workers=2, pipeline="dali")
with make_loader(open_source(sys.argv[1]), **settings) as loader:
    next(loader)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:
        next(loader)
        time.sleep(0.01)
"""


def loader(source, **settings):
    return make_loader(source, **{**SETTINGS, "pipeline": "dali", **settings})


def jpegs(folder, make_image, count=24):
    """JPEGs of many sizes."""
    root = folder / "jpegs"
    root.mkdir()
    for i in range(count):
        (root / f"{i:03}.jpg").write_bytes(make_image(i, (24 + i % 17, 40 - i % 13)))
    return root


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to read the resident memory from")
def test_100_000_images_take_no_more_memory_than_10_000(tmp_path, make_image):
    command = [sys.executable, "-c", LONG, str(jpegs(tmp_path, make_image, 400))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 20, "bytes more after 100,000 images than after 10,000"


def test_ctrl_c_ends_at_once_and_in_one_traceback(tmp_path, make_image):
    start = time.monotonic()
    command = [sys.executable, "-c", INTERRUPTED, str(jpegs(tmp_path, make_image))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and time.monotonic() - start < 40
    assert done.stderr.count("Traceback") == 1 and "KeyboardInterrupt" in done.stderr


def threads() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()


def test_close_leaves_no_thread(photo_folder):
    source = open_source(str(photo_folder))
    with loader(source) as made:  # the first starts threads that DALI keeps for the process
        next(made)
    time.sleep(0.5)  # a thread that was waited for is listed a moment longer
    before = threads()
    for _ in range(3):
        made = loader(source, workers=3)
        next(made)
        made.close()
        made.close()
        with pytest.raises(StopIteration):
            next(made)
    deadline = time.monotonic() + 20
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threads() <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("misplace")]


def test_it_works_ahead_and_no_further(photo_folder):
    """Four batches ready, and at most two in the making."""
    source = open_source(str(photo_folder))
    reads = []
    read = source.read
    source.read = lambda index: (reads.append(index), read(index))[1]
    with loader(source, prefetch=4) as made:
        next(made)
        deadline = time.monotonic() + 20
        while len(reads) < 8 * 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        assert 8 * 5 <= len(reads) <= 8 * 8


def test_threads_keep_to_the_cores_given(photo_folder):
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) < 2:
        pytest.skip("one core: nowhere to keep away from")
    before = set(os.listdir("/proc/self/task"))
    with loader(open_source(str(photo_folder)), workers=2, worker_cores=allowed[-1:]) as made:
        next(made)
        new = set(os.listdir("/proc/self/task")) - before
        assert new and all(os.sched_getaffinity(int(thread)) == {allowed[-1]} for thread in new)
    assert os.sched_getaffinity(0) == set(allowed)


def test_views_are_tensors_on_the_host(photo_folder):
    with loader(open_source(str(photo_folder))) as made:
        batch = next(made)
    assert all(view.dtype == torch.uint8 and view.is_contiguous() and not view.is_cuda for view in batch.views)
    assert all(view.add_(0) is view for view in batch.views), "cannot be written"
