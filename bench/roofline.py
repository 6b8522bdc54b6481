"""The least time that work can take on this device, from rates measured here and now."""

import functools
import time

import torch

TRAFFIC_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}  # past every cache
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
REPEATS = 8
# least bytes of a transformer block's activations per channel and token in bf16, epilogues fused
BLOCK_BYTES = {"forward+backward": 168, "forward": 56}


def floor_ms(bytes_moved: int, operations: int, dtype: torch.dtype, device: torch.device) -> float:
    """The larger of the time to move the bytes and the time to do the matrix work in `dtype`."""
    seconds = bytes_moved / traffic_rate(device, torch.get_num_threads())
    if operations:
        seconds = max(seconds, operations / matmul_rate(device, dtype, torch.get_num_threads()))
    return seconds * 1e3


@functools.cache
def traffic_rate(device: torch.device, num_threads: int) -> float:
    """Bytes per second, read and written, of the fastest of a few copies and updates in place.

    A copy first fetches the lines that it overwrites; an update in place has them already.
    """
    source = torch.rand(TRAFFIC_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    ways = (lambda: target.copy_(source), lambda: source.neg_())
    return 2 * source.nbytes / min(_best_seconds(way, device) for way in ways)


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """Floating-point operations per second of the fastest of a few square matrix products."""
    size = MATMUL_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device)


def _best_seconds(call, device: torch.device) -> float:
    call()
    return min(_seconds(call, device) for _ in range(REPEATS))


def _seconds(call, device: torch.device) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
