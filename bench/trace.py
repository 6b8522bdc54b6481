"""A misplace command under torch.profiler: `python -m misplace.bench.trace FOLDER COMMAND [ARGUMENT ...]`.

Writes FOLDER/profile.txt (the operators that take the most time) and FOLDER/trace.json.gz (for chrome://tracing).
"""

import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from misplace.engine.cli import main as misplace

NUM_ROWS = 40


def main(argv: list[str]) -> int:
    folder, command = Path(argv[0]), argv[1:]
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        code = misplace(command)
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=NUM_ROWS, max_name_column_width=60)
    (folder / "profile.txt").write_text(table + "\n")
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
