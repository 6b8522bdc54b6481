"""Bytes of shards by their place, through few open files; for threads and forked workers alike."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from .index_file import Version

MAX_OPEN = 64


class ShardReader:
    """Reads from shards of which the version is known. A process has at most MAX_OPEN of them open.

    pread moves no shared file position, so what a fork inherits can be read by both sides; nothing is locked.
    """

    def __init__(self, shards: Sequence[tuple[Path, Version]]):
        self._shards = opened = tuple(shards)
        self._open = functools.lru_cache(maxsize=MAX_OPEN)(lambda shard: _Descriptor(opened[shard][0]))

    def __reduce__(self):
        return ShardReader, (self._shards,)

    def read(self, shard: int, start: int, size: int) -> bytes:
        """Raises OSError, also where the shard is not the version that was indexed."""
        file = self._open(shard)
        data = os.pread(file.number, size, start)
        if len(data) != size or Version.of(os.fstat(file.number)) != self._shards[shard][1]:
            raise OSError(0, f"its shard {self._shards[shard][0].name} was changed after it was indexed")
        return data


class _Descriptor:
    """An open file that is closed when the last thread that reads from it lets it go."""

    def __init__(self, path: Path):
        self.number = None
        self.number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def __del__(self):
        if self.number is not None:
            os.close(self.number)
