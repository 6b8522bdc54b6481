"""What training on the CPU asks of the system, for as long as it lasts: cores, denormals, freed memory."""

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch

FEWEST_TO_SHARE = 4  # cores; below that whoever has work takes them


class Cores(NamedTuple):
    """Where the trainer's threads may run and where the data workers may."""

    trainer: tuple[int, ...]
    workers: tuple[int, ...]


def share_cores(allowed: Collection[int], workers: int) -> Cores:
    """The last cores to the workers, one each but no more than a quarter; the rest to the trainer.

    Without workers, or with fewer than four cores, all of them to both.
    """
    cores = tuple(sorted(allowed))
    if workers == 0 or len(cores) < FEWEST_TO_SHARE:
        return Cores(cores, cores)
    kept = min(workers, len(cores) // 4)
    return Cores(cores[:-kept], cores[-kept:])


@contextlib.contextmanager
def cpu_training(workers: int) -> Iterator[Cores | None]:
    """Inside, this process trains on the CPU beside `workers` data workers; prints what was done for it.

    Threads keep to the trainer's cores, and there are no more of them than cores. Numbers too small for a normal
    float are zero: they would take a hundred times as long. Both end with the block. Memory that is freed stays with
    the process, which spares a step the tens of thousands of pages that it would give back and ask for again; that
    lasts as long as the process, and costs that its size is the largest it has ever been, and more where what was
    freed lies in pieces. None: this system does not say which cores there are.
    """
    done, threads = [], torch.get_num_threads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = share_cores(allowed, workers) if allowed else None
    apart = cores is not None and cores.trainer != cores.workers
    if apart:
        torch.set_num_threads(min(threads, len(cores.trainer)))
        _keep_to(cores.trainer)
        done.append(f"{torch.get_num_threads()} threads on cores {_ranges(cores.trainer)}")
        done.append(f"data workers on {_ranges(cores.workers)}")
    done.append("denormals are zero" if flush_denormals(True) else "denormals stay")
    done.append("freed memory is kept" if keep_freed_memory() else "freed memory goes back to the system")
    print(f"CPU: {', '.join(done)}", flush=True)
    try:
        yield cores
    finally:
        flush_denormals(False)
        if apart:
            _keep_to(allowed)
            torch.set_num_threads(threads)


def flush_denormals(on: bool) -> bool:
    """Whether the CPU can, in this thread and, with the extension, in every thread that computes."""
    try:
        from misplace.kernels._C import set_flush_denormal
    except ImportError:
        return torch.set_flush_denormal(on)
    return set_flush_denormal(on)


def keep_freed_memory() -> bool:
    """Whether the C library was told to, from now on. False without the extension too."""
    try:
        from misplace.kernels._C import keep_freed_memory
    except ImportError:
        return False
    return keep_freed_memory()


def _keep_to(cores: Collection[int]) -> None:
    """Every thread of this process, also those that compute and have been started already."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(int(thread), cores)


def _ranges(cores: Collection[int]) -> str:
    """ "0-5,8" of 0, 1, 2, 3, 4, 5, 8."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
