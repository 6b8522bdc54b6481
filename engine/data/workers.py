"""Forked data workers: the trainer alone decides when they stop, and nothing is left behind."""

import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Collection
from multiprocessing.process import BaseProcess

from misplace.engine.errors import UserError

SHARED_MEMORY = "/dev/shm"
WATCH_S = 1.0
STOPPING_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def settle_in(_: int, trainer: int, cores: Collection[int] | None = None) -> None:
    """In a new worker. Ctrl-C and a group's SIGTERM reach every process; the trainer alone acts on them.

    trainer: its process; cores: where the worker may run; none: where the trainer may.
    """
    if cores:
        os.sched_setaffinity(0, cores)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()  # keeps to the cores too
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
    sys.excepthook = _without_broken_connections
    gc.freeze()  # what was inherited is not walked, and its pages stay shared


def _end_with(trainer: int) -> None:
    """The DataLoader's own watch takes whoever is the parent when it begins: after a kill at the start, pid 1."""
    while os.getppid() == trainer:
        time.sleep(WATCH_S)
    os._exit(1)


def _without_broken_connections(kind: type, error: BaseException, trace) -> None:
    """The thread that hands batches over would report a trainer that stopped while taking one."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def quiet_fork():
    """No stopping signal reaches a worker before it ignores them, and no SIGCHLD handler is left behind.

    The DataLoader's handler raises in the middle of whatever the trainer does; `next` finds a dead worker
    as well.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_child = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the number of workers, which the user chose, and of forking
            yield
    finally:
        if in_main_thread and on_child is not None:
            signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def check_shared_memory(batches: int, batch_bytes: int) -> None:
    """UserError where the batches in flight would not fit: the kernel's answer to that is a bus error."""
    if not os.path.isdir(SHARED_MEMORY):
        return
    needed, free = batches * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise UserError(
            f"{batches} batches need {needed >> 20} MiB of {SHARED_MEMORY}, which has {free >> 20} MiB free:"
            " lower --data.workers or --data.prefetch, or enlarge it (docker run --shm-size)"
        )


def describe_death(process: BaseProcess) -> str:
    """How a process that is no longer alive ended."""
    code = process.exitcode
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
