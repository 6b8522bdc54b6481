"""How much memory a call takes at its peak, above what is held before it."""

import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ALLOCATION = "[memory]"  # as the profiler names the events of torch's allocator


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that the tensors which `call` makes on `device` take at its peak, all threads together.

    What it releases of earlier ones is not taken off on the CPU, where the profiler does not know their size.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    return max(accumulate(_changes(profiled), initial=0))


def _changes(profiled: profile) -> list[int]:
    """Bytes of every allocation, and less than zero of every release, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == ALLOCATION]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]
