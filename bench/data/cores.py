"""As many cores as workers: else a side that starts more threads than it was given would have more of the machine."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def pinned_cores(count: int) -> Iterator[int]:
    """This thread, and every thread and process started from it, on `count` of its cores; yields how many it has."""
    if not hasattr(os, "sched_setaffinity"):  # not on Linux
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield min(count, len(before))
    finally:
        os.sched_setaffinity(0, before)
