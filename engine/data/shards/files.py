"""Which files a user means: a folder of shards, one shard, or a range of them."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from misplace.engine.errors import UserError

from ..image_folder import EXTENSIONS

SUFFIX = ".tar"
MAX_SHARDS = 100_000
RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")


class ShardFiles(NamedTuple):
    """files: in the order of their names; whole: they are all that their folder has."""

    folder: Path
    files: tuple[Path, ...]
    whole: bool


def find_shards(spec: str | Path) -> ShardFiles | None:
    """The shards called DIR, DIR/{0000..0127}.tar or DIR/NAME.tar; None where `spec` is something else.

    A folder with images in it, at any depth, is an image folder. Raises UserError for a range that is empty or
    lacks a shard.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        names = [entry.name for entry in _entries(path) if _is_shard(entry)]
        found = names and not _holds_images(path)
        return ShardFiles(path, tuple(path / name for name in sorted(names)), True) if found else None
    if path.suffix != SUFFIX:
        return None
    if "{" not in path.name or path.exists():
        return ShardFiles(path.parent, (path,), False) if path.is_file() else None
    return ShardFiles(path.parent, _range(path), False)


def _range(path: Path) -> tuple[Path, ...]:
    """The files of a name with one {first..last} in it; zeros in front are kept, as in a shell."""
    found = RANGE.search(path.name)
    if not found or "{" in path.name.replace(found[0], "", 1):
        raise UserError(f"{path}: write a range of shards as {{0000..0127}}{SUFFIX}, once, or give their folder")
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise UserError(f"{path} is an empty range: {first} is above {last}")
    if last - first >= MAX_SHARDS:
        raise UserError(f"{path} means {last - first + 1} shards, more than {MAX_SHARDS}")
    padded = any(number.startswith("0") and len(number) > 1 for number in found.groups())
    width = max(map(len, found.groups())) if padded else 0
    names = (path.name.replace(found[0], f"{number:0{width}}", 1) for number in range(first, last + 1))
    files = tuple(path.with_name(name) for name in names)
    if missing := [file for file in files if not file.is_file()]:
        others = f", and {len(missing) - 1} more," if len(missing) > 1 else ""
        raise UserError(f"{path}: {missing[0]}{others} does not exist")
    return files


def _is_shard(entry: os.DirEntry) -> bool:
    return entry.name.endswith(SUFFIX) and not entry.name.startswith(".") and entry.is_file()


def _holds_images(folder: Path) -> bool:
    return any(
        name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        for _, _, names in os.walk(folder, followlinks=False)
        for name in names
    )


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
