"""dataset.json beside the shards: what the tar files themselves do not say."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from misplace.engine.errors import UserError

from ..image_folder import ImageFolder
from .labels import MAX_CLASSES

FILE = "dataset.json"
VERSION = 1
MAX_BYTES = 1 << 24
MAX_SIDE = 4096


class Description(NamedTuple):
    """shards: how many images each file holds, {} where that is not known. The rest as a Source has it."""

    shards: Mapping[str, int] = {}
    class_names: tuple[str, ...] = ()
    image_size: int = ImageFolder.image_size
    patch_size: int = ImageFolder.patch_size
    channels: int = ImageFolder.channels
    mean: tuple[float, ...] = ImageFolder.mean
    std: tuple[float, ...] = ImageFolder.std

    def to_bytes(self) -> bytes:
        count = sum(self.shards.values())
        return (json.dumps({"version": VERSION, "count": count, **self._asdict()}, indent=1) + "\n").encode()


def read_description(folder: Path) -> Description | None:
    """None where the folder has none. Raises UserError for one that cannot be."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as data:
            content = json.loads(data.read(MAX_BYTES))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file} is damaged: not JSON") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise UserError(f"{file} is no description of shards, version {VERSION}: move it away, or update misplace")
    given = {name: content[name] for name in Description._fields if name in content}
    wrong = [name for name, value in given.items() if not _is_right(name, value)]
    if not wrong:
        made = Description(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
        wrong = [name for name in ("mean", "std") if len(getattr(made, name)) != made.channels]
    if wrong:
        raise UserError(f"{file}: {wrong[0]} cannot be {json.dumps(given.get(wrong[0]))[:80]}")
    return made


def _is_right(name: str, value: Any) -> bool:
    if name == "shards":
        return isinstance(value, dict) and all(type(count) is int and count >= 0 for count in value.values())
    if name == "class_names":
        unique = isinstance(value, list) and all(isinstance(v, str) and v.isprintable() for v in value)
        return unique and len(set(value)) == len(value) <= MAX_CLASSES
    if name in ("mean", "std"):
        numbers = isinstance(value, list) and all(type(v) in (int, float) and math.isfinite(v) for v in value)
        return numbers and (name == "mean" or all(v > 0 for v in value))
    if name == "channels":
        return type(value) is int and value in (1, 3)
    return type(value) is int and 0 < value <= MAX_SIDE
