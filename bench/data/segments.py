"""Sides in turn, each alone on the machine: a loader works ahead, and would slow whatever is timed beside it."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

from ..timing import Spread, spread

# Opens a loader: an endless iterator of how many images each batch has, that ends with the block.
Open = Callable[[], AbstractContextManager[Iterator[int]]]
OURS, AGAIN = "ours", "again"


class Pace(NamedTuple):
    """ms per image of ours and of a peer; ratio: peer / ours, median over rounds; itself: ours / ours."""

    ours: Spread
    against: Spread
    ratio: float
    itself: Spread


def measure(
    ours: Open,
    peers: Mapping[str, Open],
    *,
    rounds: int,
    seconds: float,
    warm_up: int,
    together: int = 1,
    after_round: Callable[[dict[str, float]], None] = lambda of_round: None,
) -> dict[str, list[float]]:
    """ms per image, a sample a round, of OURS, AGAIN (ours once more) and each peer; every round starts with another.

    after_round: called with the round's samples. The rest as in `segment`.
    """
    sides = {OURS: ours, **peers, AGAIN: ours}
    names, samples = list(sides), {name: [] for name in sides}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(segment(sides[name], seconds=seconds, warm_up=warm_up, together=together))
        after_round({name: samples[name][-1] for name in names})
    return samples


def segment(open_side: Open, *, seconds: float, warm_up: int, together: int = 1) -> float:
    """ms per image over at least `seconds` of taking batches, after `warm_up` of them; the loader is closed then.

    together: batches are counted in such groups. Worker processes finish at about the same time, and a segment that
    ended with the first of them would have waited for all and counted one.
    """
    with open_side() as batches:
        for _ in range(-(-warm_up // together) * together):
            next(batches)
        images, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds or not images:
            images += sum(next(batches) for _ in range(together))
        now = time.perf_counter()
    return (now - start) / images * 1e3


def paces(samples: Mapping[str, list[float]]) -> dict[str, Pace]:
    """By peer."""
    ours, again = samples[OURS], samples[AGAIN]
    itself = spread([b / a for a, b in zip(ours, again, strict=True)])
    return {
        name: Pace(
            ours=spread(ours),
            against=spread(theirs),
            ratio=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
            itself=itself,
        )
        for name, theirs in samples.items()
        if name not in (OURS, AGAIN)
    }
