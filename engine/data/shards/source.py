"""Shards as a data source."""

import json
import os
import re
from pathlib import Path

import numpy as np

from misplace.engine.errors import UserError

from .index import index_of, stamp_of

DATASET = "dataset.json"  # what the shards beside it hold; absent: images of ImageNet's size and statistics
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 1_000_000


def find_shards(spec: str) -> list[Path] | None:
    """The shards that `spec` names: one.tar, DIR/{0000..0127}.tar, or a folder of .tar files; None for anything else.

    UserError for a range that is empty and a shard of it that is missing.
    """
    path = Path(spec).expanduser()
    if path.suffix == ".tar" and (found := RANGE.search(spec)):
        return _of_range(spec, found)
    if path.suffix == ".tar" and not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} does not exist")
        return [path]
    if not path.is_dir():
        return None
    return sorted(entry for entry in path.glob("*.tar") if not entry.name.startswith(".")) or None


def _of_range(spec: str, found: re.Match) -> list[Path]:
    first, last = (int(number) for number in found.groups())
    if not first <= last < first + MAX_SHARDS:
        raise UserError(f"{spec}: {found[0]} is not a range of shards, from the first to the last")
    width = len(found[1]) if found[1].startswith("0") else 0
    names = (spec[: found.start()] + f"{n:0{width}}" + spec[found.end() :] for n in range(first, last + 1))
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist, and {spec} asks for it")
    return paths


class Shards:
    """The images of tar shards, in the order of the shards and in each of its members; read by offset.

    Nothing is held open: a read opens the shard, and refuses it if it is no longer the one that was indexed.
    class_names: those of the training split, of which these must be; () takes the shards' own. UserError in one line.
    """

    def __init__(self, paths: list[Path], class_names: tuple[str, ...] = ()):
        self._paths, self.name = paths, str(paths[0].parent if len(paths) > 1 else paths[0])
        self._indices = [index_of(path) for path in paths]
        self._ends = np.cumsum([len(index.offset) for index in self._indices])
        if not len(self):
            raise UserError(f"{self.name}: the shards hold no samples")
        about = _read_dataset(paths[0].with_name(DATASET))
        self.image_size, self.patch_size = about["image_size"], about["patch_size"]
        self.channels, self.mean, self.std = about["channels"], tuple(about["mean"]), tuple(about["std"])
        self.class_names = self._names_of_classes(tuple(about["class_names"]), class_names)

    def _names_of_classes(self, own: tuple[str, ...], of_training: tuple[str, ...]) -> tuple[str, ...]:
        labels = np.concatenate([index.label for index in self._indices])
        if (labels < 0).any():
            if (labels >= 0).any():
                raise UserError(f"{self.name}: {(labels < 0).sum()} of {len(labels)} samples have no label")
            return ()
        names = own or of_training or tuple(map(str, range(labels.max() + 1)))
        if of_training and names != of_training:
            raise UserError(f"{self.name}: its classes are not those of the training split")
        if labels.max() >= len(names):
            raise UserError(f"{self.name}: a label of {labels.max()} where there are {len(names)} classes")
        return names if len(names) > 1 else ()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> bytes:
        """The encoded file. Raises OSError."""
        shard, row = self._locate(index)
        of_shard = self._indices[shard]
        with open(self._paths[shard], "rb", buffering=0) as file:
            if stamp_of(os.fstat(file.fileno())) != of_shard.stamp:
                raise OSError(0, "the shard was changed after it was indexed")
            size = int(of_shard.size[row])
            data = os.pread(file.fileno(), size, int(of_shard.offset[row]))
        if len(data) != size:
            raise OSError(0, "the shard ends inside it")
        return data

    def path_of(self, index: int) -> str:
        """SHARD:MEMBER."""
        shard, row = self._locate(index)
        return f"{self._paths[shard]}:{self._indices[shard].key(row)}"

    def label(self, index: int) -> int:
        """The class, -1 where there are none."""
        shard, row = self._locate(index)
        return int(self._indices[shard].label[row]) if self.class_names else -1

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)


DEFAULT = {
    "class_names": [], "image_size": 224, "patch_size": 16, "channels": 3,
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip
KINDS = {"class_names": str, "mean": float, "std": float}  # of the elements of lists; the others are int


def _read_dataset(path: Path) -> dict:
    """dataset.json; what it leaves out is DEFAULT's. UserError where it is not what write_shards writes."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return DEFAULT
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path} cannot be read as JSON: mend or remove it") from None
    about = {**DEFAULT, **found} if isinstance(found, dict) else {}
    for name in DEFAULT:
        value, kind = about.get(name), KINDS.get(name)
        good = (
            isinstance(value, list) and all(type(x) is kind for x in value)
            if kind
            else type(value) is int and value > 0
        )
        if not good:
            raise UserError(f"{path}: {name} is {str(value)[:40]!r}: mend or remove it")
    if about["channels"] not in (1, 3) or not len(about["mean"]) == len(about["std"]) == about["channels"]:
        raise UserError(f"{path}: {about['channels']} channels do not go with its mean and std")
    return about
