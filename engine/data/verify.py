"""Decode every image once and say which cannot be used, before a run finds out."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from .batch import Failure
from .decode import DecodeError, decode, open_sample
from .sources import Source, open_splits

BLOCK = 256


class Verification(NamedTuple):
    """num_images: how many were tried; failures: those that cannot be used, in order."""

    num_images: int
    failures: tuple[Failure, ...]

    @property
    def kinds(self) -> Counter[str]:
        """How many failures of each kind."""
        return Counter(failure.reason.partition(":")[0] for failure in self.failures)


def verify(spec: str, *, workers: int = 1, progress: Callable[[int, int, int], None] | None = None) -> Verification:
    """Decode all images of a data source, every split of it.

    workers: decoding threads. progress(done, total, failed) is called now and then. A file whose damage
    lies in the middle of its pixels decodes all the same and counts as good. UserError where the source
    cannot be opened.
    """
    sources = open_splits(spec)
    total, done, failures = sum(map(len, sources)), 0, []
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for source in sources:
            for start in range(0, len(source), BLOCK):
                block = range(start, min(start + BLOCK, len(source)))
                failures += filter(None, pool.map(lambda i, source=source: _check(source, i), block))
                done += len(block)
                if progress:
                    progress(done, total, len(failures))
    return Verification(total, tuple(failures))


def _check(source: Source, index: int) -> Failure | None:
    try:
        decode(open_sample(source, index), source.channels)
    except DecodeError as error:
        return Failure(index, source.path_of(index), str(error))
    return None
