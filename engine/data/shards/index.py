"""Where the images of a shard lie: read from its headers once, then from a file beside it.

The file, NAME.tar.index: a line of JSON (version, the shard's size and time, the number of samples, the length of the
keys, a digest), then offset int64 [n], size int64 [n], label int32 [n], end of the key int64 [n], and the keys, little
endian. It is made anew where any of that does not fit.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misplace.engine.durable import replace_file
from misplace.engine.errors import UserError

from .samples import samples_of
from .tar_headers import BLOCK, MAX_MEMBER_BYTES, TarError

VERSION = 1
COLUMNS = (("offset", "<i8"), ("size", "<i8"), ("label", "<i4"), ("key_end", "<i8"))
MAX_HEADER_BYTES = 1 << 12


class ShardIndex(NamedTuple):
    """label: -1 where there is none. key_end: where a sample's key ends in `keys`, which begins with the first."""

    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    key_end: np.ndarray
    keys: bytes
    stamp: tuple[int, int]  # the shard's size and time of change, ns

    def key(self, row: int) -> str:
        """The name of a sample, its image's extension included."""
        start = self.key_end[row - 1] if row else 0
        return self.keys[start : self.key_end[row]].decode("utf-8", "replace")


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def index_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.index")


def index_of(shard: Path) -> ShardIndex:
    """The index of a shard, read or made; where it can be, it is written too. UserError for a shard that is refused."""
    try:
        stamp = stamp_of(os.stat(shard))
        if found := _read(shard, stamp):
            return found
        made = build(shard)
    except TarError as error:
        raise UserError(f"{shard}: {error}") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read: {error.strerror}") from None
    with contextlib.suppress(OSError):  # a folder that cannot be written: the index is made again next time
        replace_file(index_path(shard), _encode(made))
    return made


def build(shard: Path) -> ShardIndex:
    """From the shard's headers and labels. Raises TarError, OSError."""
    with open(shard, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        found = list(samples_of(file))
    keys = [sample.image.encode("utf-8", "surrogateescape") for sample in found]
    return ShardIndex(
        np.array([sample.offset for sample in found], dtype="<i8"),
        np.array([sample.size for sample in found], dtype="<i8"),
        np.array([sample.label for sample in found], dtype="<i4"),
        np.cumsum([len(key) for key in keys], dtype="<i8"),
        b"".join(keys),
        stamp,
    )


def _encode(index: ShardIndex) -> bytes:
    body = b"".join([*(getattr(index, name).astype(kind).tobytes() for name, kind in COLUMNS), index.keys])
    header = {
        "version": VERSION, "stamp": index.stamp, "samples": len(index.offset), "keys": len(index.keys),
        "sha256": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip
    return json.dumps(header).encode() + b"\n" + body


def _read(shard: Path, stamp: tuple[int, int]) -> ShardIndex | None:
    """None where there is no index, or none that fits the shard."""
    try:
        data = index_path(shard).read_bytes()
        line = data[: data.index(b"\n", 0, MAX_HEADER_BYTES)]
        header = json.loads(line)
        count, keys = header["samples"], header["keys"]
        fits = header["version"] == VERSION and tuple(header["stamp"]) == stamp
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    body = data[len(line) + 1 :]
    if not fits or type(count) is not int or hashlib.sha256(body).hexdigest() != header["sha256"]:
        return None
    return _decode(body, count, keys, stamp)


def _decode(body: bytes, count: int, keys: int, stamp: tuple[int, int]) -> ShardIndex | None:
    row = sum(np.dtype(kind).itemsize for _, kind in COLUMNS)
    if not 0 <= count <= stamp[0] // BLOCK or len(body) != count * row + keys:
        return None
    columns, at = [], 0
    for _, kind in COLUMNS:
        columns.append(np.frombuffer(body, dtype=kind, count=count, offset=at))
        at += columns[-1].nbytes
    offset, size, label, key_end = columns
    inside = ((offset >= BLOCK) & (size >= 0) & (size <= MAX_MEMBER_BYTES) & (offset + size <= stamp[0])).all()
    rising = (np.diff(key_end, prepend=0) > 0).all() and (key_end[-1] if count else 0) == keys
    if not (inside and rising and (label >= -1).all()):
        return None
    return ShardIndex(*columns, body[at:], stamp)
