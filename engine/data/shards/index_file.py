"""The index of a shard, kept beside it: 0000.tar.index. Plain numbers and a digest, nothing that could be executed.

one JSON line: format, size and modification time of the shard, how many samples, bytes of names
the arrays of Index in order, little-endian
SHA-256 of all that
"""

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misplace.engine.errors import UserError

from ..image_folder import MAX_FILE_BYTES
from .index import DTYPES, Index, build_index
from .labels import MAX_CLASSES, MAX_JSON, NO_LABEL
from .names import CONTROL, Refused
from .tar import members

FORMAT = "misplace shard index 1"
MAX_LINE = 1000
DIGEST_BYTES = 32


class Version(NamedTuple):
    """Tells one state of a file from another."""

    size: int  # bytes
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Version":
        return cls(status.st_size, status.st_mtime_ns)


def index_path(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.index")


def open_index(shard: Path) -> tuple[Index, Version]:
    """The index of a shard and of which version of it: read if there is one, or else built and kept if possible.

    Raises UserError that names the shard, and the member where there is one to blame.
    """
    try:
        descriptor = os.open(shard, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}") from None
    try:
        version = Version.of(os.fstat(descriptor))
        index = load_index(shard, version)
        if index is None:
            index = _build(descriptor, version.size)
            if Version.of(os.fstat(descriptor)) != version:
                raise Refused("changed while it was read")
            with contextlib.suppress(OSError):  # a folder that cannot be written to: built again next time
                save_index(shard, version, index)
        return index, version
    except Refused as error:
        raise UserError(f"{shard}: {error}") from None
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def has_index(shard: Path) -> bool:
    """Whether an index is there that seems to be newer than the shard; it may still be refused."""
    try:
        return index_path(shard).stat().st_mtime_ns >= shard.stat().st_mtime_ns
    except OSError:
        return False


def save_index(shard: Path, version: Version, index: Index) -> None:
    """Writes it in one step. Not synced: after a power cut its digest tells whether it is whole. Raises OSError."""
    content = _line(version, index.num_samples, len(index.names))
    content += b"".join(column.tobytes() for column in index)
    path = index_path(shard)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # ranks may write the same one at once
    try:
        temporary.write_bytes(content + hashlib.sha256(content).digest())
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_index(shard: Path, version: Version) -> Index | None:
    """None where there is no index, or it is of another version of the shard, damaged, or says what cannot be."""
    try:
        with open(os.open(index_path(shard), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            line = file.readline(MAX_LINE)
            num_samples, name_bytes = _counts(line)
            size = len(line) + _arrays_bytes(num_samples, name_bytes) + DIGEST_BYTES
            known = line == _line(version, num_samples, name_bytes) and stat.S_ISREG(status.st_mode)
            if not known or status.st_size != size or max(num_samples * 512, name_bytes) > version.size:
                return None
            data = line + file.read(size - len(line))
    except (OSError, ValueError):
        return None
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        return None
    index = _arrays(data, len(line), num_samples, name_bytes)
    return index if _can_be(index, version.size) else None


def _build(descriptor: int, size: int) -> Index:
    return build_index(members(descriptor, size), lambda member: os.pread(descriptor, member.size, member.start))


def _line(version: Version, num_samples: int, name_bytes: int) -> bytes:
    says = {"format": FORMAT, **version._asdict(), "samples": num_samples, "name_bytes": name_bytes}
    return json.dumps(says).encode() + b"\n"


def _counts(line: bytes) -> tuple[int, int]:
    """ValueError where the line does not say them."""
    says = json.loads(line)
    counts = (says.get("samples"), says.get("name_bytes")) if isinstance(says, dict) else (None, None)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("no counts")
    return counts


def _lengths(num_samples: int, name_bytes: int) -> list[int]:
    return [*[num_samples] * (len(DTYPES) - 1), name_bytes]


def _arrays_bytes(num_samples: int, name_bytes: int) -> int:
    lengths = _lengths(num_samples, name_bytes)
    return sum(np.dtype(dtype).itemsize * length for dtype, length in zip(DTYPES, lengths))


def _arrays(data: bytes, at: int, num_samples: int, name_bytes: int) -> Index:
    columns = []
    for dtype, length in zip(DTYPES, _lengths(num_samples, name_bytes)):
        columns.append(np.frombuffer(data, dtype, length, at))
        at += columns[-1].nbytes
    return Index(*columns)


def _can_be(index: Index, shard_size: int) -> bool:
    """Whether all of it lies inside the shard: an index can be made by whoever made the shard."""
    ends = np.concatenate([np.zeros(1, dtype=np.int64), index.name_end])
    return (
        _inside(index.start, index.size, min(shard_size, MAX_FILE_BYTES), shard_size)
        and _inside(index.json_start, index.json_size, MAX_JSON, shard_size)
        and bool(((index.label >= NO_LABEL) & (index.label < MAX_CLASSES)).all())
        and bool((np.diff(ends) > 0).all() and ends[-1] == len(index.names))
        and not CONTROL.search(index.names.tobytes().decode("utf-8", "surrogateescape"))
    )


def _inside(start: np.ndarray, size: np.ndarray, max_size: int, end: int) -> bool:
    possible = (start >= 0) & (start <= end) & (size >= 0) & (size <= max_size)
    return bool(possible.all() and (start + size <= end).all())
