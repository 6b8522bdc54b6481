"""Members of a shard put together to samples, as WebDataset has them: those whose names agree up to the first dot."""

import itertools
import json
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ..image_folder import EXTENSIONS
from .tar_headers import Member, TarError, members

MAX_CLASS_BYTES, MAX_JSON_BYTES = 64, 1 << 20
MAX_LABEL = 2**31 - 1


class Sample(NamedTuple):
    """image: the member's name; offset, size: of its bytes; label: -1 where there is none."""

    image: str
    offset: int
    size: int
    label: int


def samples_of(file: BinaryIO) -> Iterator[Sample]:
    """The samples in order. Raises TarError, OSError."""
    seen: set[str] = set()
    for key, group in itertools.groupby(members(file), key=lambda member: split_name(member.name)[0]):
        if key in seen:
            raise TarError(f"the sample {key!r} comes twice, or its members are not side by side")
        seen.add(key)
        yield _sample(file, key, list(group))


def split_name(name: str) -> tuple[str, str]:
    """ "a/b.c.jpg" is the sample "a/b", with the extension "c.jpg" in small letters."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _sample(file: BinaryIO, key: str, group: list[Member]) -> Sample:
    by_extension: dict[str, Member] = {}
    for member in group:
        extension = split_name(member.name)[1]
        if extension in by_extension:
            raise TarError(f"{member.name!r} comes twice")
        by_extension[extension] = member
    images = [member for extension, member in by_extension.items() if f".{extension}" in EXTENSIONS]
    if len(images) != 1:
        what = f"{len(images)} images" if images else f"no image ({' '.join(EXTENSIONS)})"
        raise TarError(f"the sample {key!r} has {what}")
    return Sample(images[0].name, images[0].offset, images[0].size, _label(file, by_extension))


def _label(file: BinaryIO, by_extension: dict[str, Member]) -> int:
    """.cls, an integer in ASCII; or else the integer "label" of .json."""
    if member := by_extension.get("cls"):
        text = _content(file, member, MAX_CLASS_BYTES).strip()
        if not (text.isdigit() and len(text) < 11 and int(text) <= MAX_LABEL):
            raise TarError(f"{member.name!r} holds {text[:20]!r}, not the number of a class")
        return int(text)
    if member := by_extension.get("json"):
        try:
            content = json.loads(_content(file, member, MAX_JSON_BYTES))
        except (ValueError, RecursionError):
            raise TarError(f"{member.name!r} is not JSON") from None
        label = content.get("label") if isinstance(content, dict) else None
        if type(label) is int and 0 <= label <= MAX_LABEL:
            return label
    return -1


def _content(file: BinaryIO, member: Member, most: int) -> bytes:
    if member.size > most:
        raise TarError(f"{member.name!r} has {member.size} bytes, more than the {most} that it may")
    return os.pread(file.fileno(), member.size, member.offset)
