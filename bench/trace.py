"""A misplace command under torch.profiler: `python -m misplace.bench.trace FOLDER COMMAND [ARGUMENT ...]`.

Writes FOLDER/operators.txt (those that take the most time) and FOLDER/trace.json.gz (for chrome://tracing).
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from misplace.engine.cli import main as misplace

NUM_ROWS = 40


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """What runs inside, on every device there is, as two files in `folder`."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        yield
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=NUM_ROWS, max_name_column_width=60)
    (folder / "operators.txt").write_text(table + "\n")
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))


def main(argv: list[str]) -> int:
    """The command's own exit code."""
    with traced(Path(argv[0])):
        return misplace(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
