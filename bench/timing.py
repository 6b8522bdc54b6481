"""Milliseconds per call, interleaved in one process so that a drifting machine hits all sides alike."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

WARM_UP = 3
CPU_SAMPLE_S = 2e-3  # a CPU sample repeats a short call until the clock's own noise is small
COLD = 2  # an L2 flush writes this many times the cache


class Spread(NamedTuple):
    """The 20th, 50th and 80th percentile of a list of samples."""

    p20: float
    p50: float
    p80: float


def spread(samples: list[float]) -> Spread:
    if len(samples) == 1:
        return Spread(*samples * 3)
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Spread(deciles[1], deciles[4], deciles[7])


class Comparison(NamedTuple):
    """Ours against a peer: ms per call of both, their ratio, and ours against itself as the yardstick."""

    ours: Spread
    against: Spread
    ratio: float  # median over rounds of against / ours
    itself: Spread  # ours / ours, over the same rounds

    @property
    def counts(self) -> bool:
        """The ratio lies outside the spread of ours against itself, in either direction."""
        noise = max(self.itself.p80, 1 / self.itself.p20)
        return max(self.ratio, 1 / self.ratio) > noise


def compare(ours: Callable, against: Callable, device: torch.device, *, rounds: int = 25) -> Comparison:
    """Alternates ours, the peer and ours again for `rounds` rounds."""
    samples = interleave({"ours": ours, "against": against, "again": ours}, device, rounds=rounds)
    return Comparison(
        ours=spread(samples["ours"]),
        against=spread(samples["against"]),
        ratio=statistics.median(b / a for a, b in zip(samples["ours"], samples["against"], strict=True)),
        itself=spread([b / a for a, b in zip(samples["ours"], samples["again"], strict=True)]),
    )


def interleave(calls: Mapping[str, Callable], device: torch.device, *, rounds: int) -> dict[str, list[float]]:
    """`rounds` samples (ms per call) of each call; every round starts with another one."""
    sample = _cuda_sampler(device) if device.type == "cuda" else _cpu_sampler(calls)
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    names, readings = list(calls), []
    for round_ in range(rounds):
        first = round_ % len(names)
        readings += [(name, sample(name, calls[name])) for name in names[first:] + names[:first]]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name, read in readings:
        samples[name].append(read())
    return samples


def _cpu_sampler(calls: Mapping[str, Callable]) -> Callable:
    repeats: dict[str, int] = {}

    def sample(name: str, call: Callable) -> Callable[[], float]:
        if name not in repeats:
            seconds = _seconds(call, 1)
            repeats[name] = max(1, round(CPU_SAMPLE_S / max(seconds, 1e-9)))
        ms = _seconds(call, repeats[name]) / repeats[name] * 1e3
        return lambda: ms

    return sample


def _seconds(call: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def _cuda_sampler(device: torch.device) -> Callable:
    """One call between two events behind an L2 flush, which also hides the launch from the clock."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(COLD * cache, dtype=torch.uint8, device=device)

    def sample(name: str, call: Callable) -> Callable[[], float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        call()
        end.record()
        return lambda: start.elapsed_time(end)

    return sample


@contextlib.contextmanager
def pinned_threads(count: int | None) -> Iterator[int]:
    """torch's thread count held at `count` (None: as it is); yields the count."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
