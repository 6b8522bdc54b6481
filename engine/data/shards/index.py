"""Where the images of one shard lie, as flat arrays: built from its members, one entry per sample."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from ..image_folder import EXTENSIONS, MAX_FILE_BYTES
from .labels import MAX_CLS, MAX_JSON, NO_LABEL, label_of_cls, label_of_json
from .names import Refused, shown, split_name
from .tar import Member

IMAGES = tuple(extension[1:] for extension in EXTENSIONS)
ReadMember = Callable[[Member], bytes]


class Index(NamedTuple):
    """n samples. start, size: of the image's bytes; json_size 0: no metadata; names: of the images, end to end."""

    start: np.ndarray  # int64 [n]
    size: np.ndarray  # int64 [n]
    json_start: np.ndarray  # int64 [n]
    json_size: np.ndarray  # int32 [n]
    label: np.ndarray  # int32 [n], -1 where there is none
    name_end: np.ndarray  # int64 [n], where a name ends in `names`
    names: np.ndarray  # uint8

    @property
    def num_samples(self) -> int:
        return len(self.start)

    def name(self, sample: int) -> str:
        """The image's name in the tar file."""
        begin = self.name_end[sample - 1] if sample else 0
        return self.names[begin : self.name_end[sample]].tobytes().decode("utf-8", "surrogateescape")


DTYPES = Index("<i8", "<i8", "<i8", "<i4", "<i4", "<i8", "|u1")


def build_index(members: Iterable[Member], read: ReadMember) -> Index:
    """Groups members that follow each other and share a key into samples.

    read: the bytes of a member, for labels. Raises Refused, naming the member: for a sample without an image or
    with two, a file or a key that is there twice, an image above MAX_FILE_BYTES, a label that is none.
    """
    columns = [array(code) for code in "qqqiiq"]
    names, hashes = bytearray(), array("q")
    for key, files in _samples(members):
        image, metadata = _image(key, files), files.get("json")
        names += image.name.encode("utf-8", "surrogateescape")
        json_start, json_size = (metadata.start, metadata.size) if metadata else (0, 0)
        row = (image.start, image.size, json_start, json_size, _label(files, read), len(names))
        for column, value in zip(columns, row):
            column.append(value)
        hashes.append(hash(key))  # salted by Python: nobody can prepare two that collide
    index = Index(*(np.array(c, dtype=dtype) for c, dtype in zip((*columns, names), DTYPES)))
    _check_keys(index, hashes)
    return index


def _samples(members: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and extension -> member of each sample."""
    named = ((*parts, member) for member in members if (parts := split_name(member.name)))
    for key, group in groupby(named, key=itemgetter(0)):
        files: dict[str, Member] = {}
        for _, extension, member in group:
            if extension in files:
                raise Refused(f"{shown(member.name)} is there twice")
            if extension == "json" and member.size > MAX_JSON:
                raise Refused(f"{shown(member.name)} is larger than {MAX_JSON >> 20} MiB")
            files[extension] = member
        yield key, files


def _image(key: str, files: dict[str, Member]) -> Member:
    images = [files[extension] for extension in IMAGES if extension in files]
    if not images:
        have = shown(", ".join(f".{extension}" for extension in files))
        raise Refused(f"the sample {shown(key)} has no image ({' '.join(EXTENSIONS)}) but {have}")
    if len(images) > 1:
        raise Refused(f"the sample {shown(key)} has two images, {shown(images[0].name)} and {shown(images[1].name)}")
    if images[0].size > MAX_FILE_BYTES:
        raise Refused(f"{shown(images[0].name)} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return images[0]


def _label(files: dict[str, Member], read: ReadMember) -> int:
    if label := files.get("cls"):
        if label.size > MAX_CLS:
            raise Refused(f"{shown(label.name)} is not an integer")
        return label_of_cls(read(label), shown(label.name))
    metadata = files.get("json")
    return label_of_json(read(metadata), shown(metadata.name)) if metadata else NO_LABEL


def _check_keys(index: Index, hashes: array) -> None:
    """Refused where a key comes again after another sample."""
    values = np.array(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order][1:] == values[order][:-1])
    for at in again.tolist():
        first, second = (index.name(int(order[at + step])) for step in (0, 1))
        if split_name(first)[0] == split_name(second)[0]:
            what = (
                "is there twice" if first == second else f"is of the same sample as {shown(first)}, but not beside it"
            )
            raise Refused(f"{shown(second)} {what}")
