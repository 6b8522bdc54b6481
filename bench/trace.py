"""A block under torch.profiler: a Chrome trace and the table of the operators that take the most time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

NUM_ROWS = 40


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """What runs inside, on every device there is: trace.json.gz (for chrome://tracing) and operators.txt."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        yield
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=NUM_ROWS, max_name_column_width=60)
    (folder / "operators.txt").write_text(table + "\n")
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
