"""One 512-byte header of a tar file, and the two kinds of member that say more about the next one."""

import re
from typing import NamedTuple

from .names import Refused, shown

BLOCK = 512
USTAR, GNU = b"ustar\x0000", b"ustar  \0"  # magic and version [S: POSIX.1-1988; GNU tar]
MAX_DIGITS = 20
SPARSE = "GNU.sparse."


class Header(NamedTuple):
    """name: as stored, not yet checked; kind: the type flag, one byte; size: of what follows, bytes."""

    name: str
    kind: bytes
    size: int


def parse_header(block: bytes) -> Header:
    """Raises Refused where the block is no ustar or GNU header, or its checksum is wrong."""
    magic = block[257:265]
    if magic not in (USTAR, GNU):
        raise Refused("no tar header")
    # [S] The sum of all bytes, those of the sum itself counted as spaces.
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != parse_number(block[148:156], "checksum"):
        raise Refused(f"{_stored_name(block)} has a header with a wrong checksum")
    name = text_of(block[:100])
    if magic == USTAR and (prefix := text_of(block[345:500])):
        name = f"{prefix}/{name}"
    return Header(name, block[156:157], parse_number(block[124:136], f"size of {shown(name)}"))


def parse_number(field: bytes, what: str) -> int:
    """An octal number, or [S, GNU] a base-256 one whose first bit is set. Raises Refused, also below zero."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise Refused(f"the {what} is negative")
        return int.from_bytes(field) & ~(0x80 << 8 * (len(field) - 1))
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits or digits.strip(b"01234567"):
        raise Refused(f"the {what} is no number")
    return int(digits, 8)


def text_of(field: bytes) -> str:
    """A name that ends at the first NUL; Refused where something follows that."""
    text, _, rest = field.partition(b"\0")
    name = decoded(text)
    if rest.strip(b"\0"):
        raise Refused(f"{shown(name)} has a NUL byte in its name")
    return name


def parse_pax(data: bytes) -> dict[str, str | int]:
    """The records "LENGTH KEY=VALUE\\n" of a pax member: path and size, where it has them; others are not needed."""
    found: dict[str, str | int] = {}
    while data:
        length, key, value = _pax_record(data)
        data = data[length:]
        if key.startswith(SPARSE):
            raise Refused("a sparse member")
        if key == "path":
            if b"\0" in value:
                raise Refused(f"{shown(decoded(value))} has a NUL byte in its name")
            found["path"] = decoded(value)
        elif key == "size":
            if not re.fullmatch(rb"[0-9]{1,%d}" % MAX_DIGITS, value):
                raise Refused(f"a pax size that is no number: {shown(decoded(value))}")
            found["size"] = int(value)
    return found


def _pax_record(data: bytes) -> tuple[int, str, bytes]:
    head = re.match(rb"([1-9][0-9]{0,6}) ([^=]*)=", data)
    length = int(head[1]) if head else 0
    if not head or not head.end() < length <= len(data) or data[length - 1 : length] != b"\n":
        raise Refused("damaged pax records")
    return length, decoded(head[2]), data[head.end() : length - 1]


def decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _stored_name(block: bytes) -> str:
    return shown(decoded(block[:100].partition(b"\0")[0])) or "a member"
