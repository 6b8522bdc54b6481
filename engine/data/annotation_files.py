"""The words beside published pictures: lines of a table and names of files, checked as they are read."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from misplace.engine.errors import UserError

MAX_TEXT_BYTES = 1 << 28
FARTHEST = 100_000.0  # pixels: no picture is wider than a JPEG's 65,535


class Line(NamedTuple):
    """One line of a text file, cut into words."""

    file: Path
    number: int  # from 1
    words: tuple[str, ...]

    def wrong(self, what: str) -> UserError:
        """An error that names the file and the line."""
        return UserError(f"{self.file}, line {self.number}: {what}")

    def whole(self, position: int, low: int, high: int) -> int:
        """The word as a whole number. UserError where it is none or outside low..high."""
        word = self.words[position]
        if not (word.isascii() and word.isdecimal() and len(word) < 10 and low <= int(word) <= high):
            raise self.wrong(f"{word[:40]!r} is not a whole number from {low} to {high}")
        return int(word)

    def pixels(self, position: int) -> float:
        """The word as a coordinate or a length. UserError where it is not finite or beyond any picture."""
        word = self.words[position]
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not abs(value) <= FARTHEST:
            raise self.wrong(f"{word[:40]!r} is not a number of pixels")
        return value

    def file_name(self, position: int) -> str:
        """The word as the name of a file below a folder; UserError where it is another."""
        if not below(self.words[position]):
            raise self.wrong(f"{self.words[position][:80]!r} is not the name of a file below the folder of the images")
        return self.words[position]


def read_lines(file: Path, words: int, dataset: str) -> Iterator[Line]:
    """The lines of a text file, each of exactly this many words, the last of which may hold spaces; empty ones
    are passed over. UserError, which names the file and the line."""
    check_file(file, MAX_TEXT_BYTES, dataset)
    try:
        with open(file, encoding="utf-8") as lines:
            for number, text in enumerate(lines, 1):
                line = Line(file, number, tuple(text.split(maxsplit=words - 1)))
                if len(line.words) == words:
                    yield line._replace(words=(*line.words[:-1], line.words[-1].strip()))
                elif line.words:
                    raise line.wrong(f"has {len(line.words)} words, {words} are needed")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text in UTF-8") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def check_file(file: Path, max_bytes: int, dataset: str) -> None:
    """UserError where it is missing, no regular file, or larger than is ever read."""
    if not os.path.isfile(file):
        raise UserError(f"{file} is missing: give the folder into which {dataset} was unpacked")
    if os.path.getsize(file) > max_bytes:
        raise UserError(f"{file} is larger than {max_bytes >> 20} MiB: not the annotations of {dataset}")


def below(name: str) -> bool:
    """Whether a file of this name lies below the folder it is looked up in."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and name.isprintable() and not set(name) & set("\\:")
