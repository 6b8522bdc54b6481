"""Writes a data source as tar shards in WebDataset form: complete or not at all, the same bytes every time."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from misplace.engine.durable import sync_folder, write_file
from misplace.engine.errors import UserError

from .description import FILE, Description
from .index_file import open_index
from .sample_files import sample_files
from .tar_header import BLOCK

SHARD_BYTES = 256 << 20
MAX_SHARDS = 10_000  # four digits
END = bytes(2 * BLOCK)
SPLITS = ("train", "test")

Progress = Callable[[int, int], None]


def write_shards(
    sources: Sequence, out: str | Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None
) -> Path:
    """Writes `sources`, as open_splits gives them, to the new folder `out` and returns it.

    One source goes into OUT itself, two into OUT/train and OUT/test: 0000.tar, ... of at most shard_bytes (one
    sample at least), the index of each, and dataset.json. Samples keep their order and are called by their numbers.
    The folder appears complete or not at all: until then it is called .OUT.unfinished-*. progress: called with
    (done, total) samples. Raises UserError, also for an image that cannot be read.
    """
    out = Path(out).expanduser().absolute()
    _check(out, shard_bytes)
    total = sum(map(len, sources))
    folders = ("",) if len(sources) == 1 else SPLITS
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out.parent))
        done = count(1)
        tick = (lambda: progress(next(done), total)) if progress else (lambda: None)
        for name, source in zip(folders, sources):
            (folder / name).mkdir(exist_ok=True)
            _write_split(folder / name, source, shard_bytes, tick)
        folder.chmod(0o755)
        sync_folder(folder)
        os.rename(folder, out)
        sync_folder(out.parent)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return out


def _check(out: Path, shard_bytes: int) -> None:
    if shard_bytes < 1:
        raise UserError(f"shards of {shard_bytes} bytes: ask for more")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder that is not there yet")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another folder")
    if os.path.ismount(out):
        raise UserError(f"{out} is a mount point: name a folder in it")


def _write_split(folder: Path, source, shard_bytes: int, tick: Callable[[], None]) -> None:
    samples = _numbered(source, tick)
    counts: dict[str, int] = {}
    waiting = next(samples, None)
    while waiting is not None:
        if len(counts) == MAX_SHARDS:
            raise UserError(f"more than {MAX_SHARDS} shards: write larger ones (--shard-size-mb)")
        name = f"{len(counts):04}.tar"
        counts[name], waiting = _write_shard(folder / name, waiting, samples, shard_bytes)
        open_index(folder / name)  # reads back what was written, and keeps the index
    described = {field: getattr(source, field) for field in Description._fields if field != "shards"}
    write_file(folder / FILE, Description(shards=counts, **described).to_bytes())
    sync_folder(folder)


def _write_shard(file: Path, first: bytes, samples: Iterator[bytes], shard_bytes: int) -> tuple[int, bytes | None]:
    """Writes `first` and what else fits; returns how many, and the sample that did not fit any more."""
    with open(file, "xb") as out:
        written, number, sample = len(END), 0, first
        while sample is not None and (not number or written + len(sample) <= shard_bytes):
            written, number = written + out.write(sample), number + 1
            sample = next(samples, None)
        out.write(END)
        out.flush()
        os.fsync(out.fileno())
    return number, sample


def _numbered(source, tick: Callable[[], None]) -> Iterator[bytes]:
    """The members of each sample as they stand in the tar file."""
    for index in range(len(source)):
        files = sorted(sample_files(source, index).items())
        yield b"".join(_member(f"{index:08}.{extension}", data) for extension, data in files)
        tick()


def _member(name: str, data: bytes) -> bytes:
    """Header, content and padding; no time, no owner."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)
