"""Any source as tar shards: the same source gives the same bytes."""

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from misplace.engine.durable import sync_folder, write_file
from misplace.engine.errors import UserError

from ..sources import Source, open_splits
from .index import index_of
from .source import DATASET, DEFAULT

SHARD_BYTES = 256 << 20
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp"}
Progress = Callable[[int, int], None]


def write_shards(spec: str, out: Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None) -> Path:
    """Every split of the source called `spec`, in its order, as shards of about shard_bytes in the folder `out`.

    One split lies in `out` itself, two in out/train and out/test. Files go in as they are, pixels in memory as PNG;
    beside each its class (.cls) and its name and annotation (.json). progress(done, total) after each sample. The
    folder appears when all of it is written. UserError in one line, also where `out` holds something already.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; name another folder")
    if shard_bytes < 1:
        raise UserError(f"shards of {shard_bytes} bytes: give a size above zero")
    splits = open_splits(spec)
    total, done = sum(map(len, splits)), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, source in zip(("train", "test") if len(splits) > 1 else (".",), splits):
            place = folder / name
            place.mkdir(exist_ok=True)
            for _ in _write_split(source, place, shard_bytes):
                done += 1
                if progress:
                    progress(done, total)
        folder.chmod(0o755)
        os.replace(folder, out)  # over an empty folder too
        sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _write_split(source: Source, place: Path, shard_bytes: int) -> Iterator[int]:
    """Yields the number of each sample once it is written."""
    number, index = 0, 0
    while index < len(source):
        shard = place / f"{number:04d}.tar"
        with open(shard, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                while index < len(source) and file.tell() < shard_bytes:
                    for name, data in _members(source, index):
                        tar.addfile(_header(name, len(data)), io.BytesIO(data))
                    yield index
                    index += 1
            file.flush()
            os.fsync(file.fileno())
        index_of(shard)
        number += 1
    about = {name: getattr(source, name) for name in DEFAULT} | {"version": 1, "samples": len(source), "shards": number}
    write_file(place / DATASET, (json.dumps(about, indent=1) + "\n").encode())
    sync_folder(place)


def _members(source: Source, index: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member of a sample."""
    key, where = f"{index:09d}", source.path_of(index)
    try:
        data = source.read(index)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; `misplace data verify` names all such") from None
    extension = "png"
    if isinstance(data, np.ndarray):
        data = _png(data)
    else:
        extension = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
        if extension is None:
            raise UserError(f"{where} is not a JPEG, PNG, WebP or BMP image; `misplace data verify` names all such")
    yield f"{key}.{extension}", data
    if source.class_names:
        yield f"{key}.cls", str(source.label(index)).encode()
    about = {"name": "/".join(Path(where).parts[-2:])}
    if hasattr(source, "annotation"):
        about |= asdict(source.annotation(index))
    yield f"{key}.json", json.dumps(about, separators=(",", ":")).encode()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Without whose, when and where."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header
