"""Tar shards as a data source: every image by one read at a known place."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from misplace.engine.errors import UserError

from .description import FILE, Description, read_description
from .files import ShardFiles
from .index import Index
from .index_file import Version, has_index, open_index
from .labels import parse_json
from .names import Refused, printable
from .reader import ShardReader

SAY_ABOVE = 1 << 30  # bytes of shards to be indexed before the first image


class Shards:
    """The samples of tar files in WebDataset form, in the order of the files and of the members in each.

    Sizes, normalisation and class names come from dataset.json beside the files where there is one. Without it
    they are an image folder's, and the classes are called "0" to the highest label [O]. A single class is no label
    then, and a set in which any image lacks a label is unlabelled [O]. Raises UserError in one line.

    files: as find_shards gave them; name: what the user calls them; classes: the class names of the training split.
    """

    def __init__(self, files: ShardFiles, name: str = "", classes: tuple[str, ...] = ()):
        self.root, self.name = files.folder, name or str(files.folder)
        self.files = files.files
        given = read_description(files.folder)
        description = given or Description()
        self.image_size, self.patch_size = description.image_size, description.patch_size
        self.channels, self.mean, self.std = description.channels, description.mean, description.std
        self._indexes = _open(files, description)
        self._ends = np.cumsum([index.num_samples for index, _ in self._indexes])
        if not len(self):
            raise UserError(f"{self.name}: {'these shards hold' if len(self.files) > 1 else 'it holds'} no samples")
        self._reader = ShardReader([(file, version) for file, (_, version) in zip(self.files, self._indexes)])
        self.class_names = self._class_names(given.class_names if given else None, classes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError, also where its shard is no longer what it was."""
        shard, sample = self._locate(index)
        arrays = self._indexes[shard][0]
        return self._reader.read(shard, int(arrays.start[sample]), int(arrays.size[sample]))

    def metadata(self, index: int) -> Any:
        """What the sample's .json file says, {} where there is none. Raises OSError."""
        shard, sample = self._locate(index)
        arrays = self._indexes[shard][0]
        if not arrays.json_size[sample]:
            return {}
        data = self._reader.read(shard, int(arrays.json_start[sample]), int(arrays.json_size[sample]))
        try:
            return parse_json(data, self.path_of(index))
        except Refused as error:
            raise OSError(0, str(error)) from None

    def path_of(self, index: int) -> str:
        """FOLDER/0003.tar:NAME."""
        shard, sample = self._locate(index)
        return printable(f"{self.files[shard]}:{self._indexes[shard][0].name(sample)}")

    def label(self, index: int) -> int:
        """The class, -1 in an unlabelled set."""
        if not self.class_names:
            return -1
        shard, sample = self._locate(index)
        return int(self._indexes[shard][0].label[sample])

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard, and the number of the sample in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} samples")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _class_names(self, described: Sequence[str] | None, classes: tuple[str, ...]) -> tuple[str, ...]:
        lowest = min(int(index.label.min()) for index, _ in self._indexes if index.num_samples)
        highest = max(int(index.label.max()) for index, _ in self._indexes if index.num_samples)
        if described and classes and described != classes:
            raise UserError(f"{self.root / FILE} has other classes than the training split")
        if lowest < 0:
            return ()
        names = tuple(described or classes)
        if not names and described is None:
            names = tuple(map(str, range(highest + 1))) if highest else ()
        if names and highest >= len(names):
            shard, sample = self._locate(self._first_with(highest))
            where = f"{self.files[shard]}: {printable(self._indexes[shard][0].name(sample))}"
            raise UserError(f"{where} has the label {highest}, but there are only {len(names)} classes")
        return names

    def _first_with(self, label: int) -> int:
        return int(np.flatnonzero(np.concatenate([index.label for index, _ in self._indexes]) == label)[0])


def _open(files: ShardFiles, description: Description) -> list[tuple[Index, Version]]:
    """The index of every shard; UserError where one is missing or holds another number of samples than described."""
    names = {file.name for file in files.files}
    if files.whole and (missing := sorted(description.shards.keys() - names)):
        raise UserError(f"{files.folder / missing[0]} is missing: {FILE} has {len(missing)} shards more than there are")
    new = [file for file in files.files if not has_index(file)]
    if sum(file.stat().st_size for file in new) > SAY_ABOVE:
        print(f"indexing {len(new)} shards of {files.folder} (once)", file=sys.stderr, flush=True)
    opened = []
    for file in files.files:
        index, version = open_index(file)
        said = description.shards.get(file.name, index.num_samples)
        if said != index.num_samples:
            raise UserError(f"{file} holds {index.num_samples} samples, {FILE} beside it says {said}")
        opened.append((index, version))
    return opened
