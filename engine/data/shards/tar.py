"""Goes over the headers of a tar file and says where every member's bytes are. Nothing is ever extracted."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from .names import Refused, check_name, shown
from .tar_header import BLOCK, Header, parse_header, parse_pax, text_of

LONG_NAME, PAX, PAX_GLOBAL, FOLDER = b"L", b"x", b"g", b"5"
REGULAR = (b"0", b"\0")
# [S, POSIX and GNU tar] what else a member can be; none of these is read
OTHERS = {
    b"1": "a hard link", b"2": "a symbolic link", b"K": "a link", b"3": "a character device",
    b"4": "a block device", b"6": "a fifo", b"7": "a contiguous file", b"S": "a sparse file",
}  # fmt: skip
MAX_EXTENSION = 1 << 16  # bytes of a long name or of pax records
MAX_TAIL = 1 << 24  # bytes after the end mark: writers fill up to a tape's record
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar: its bytes are [start, start + size) of the tar file."""

    name: str
    start: int
    size: int


def members(descriptor: int, end: int) -> Iterator[Member]:
    """The regular files of an open tar file of `end` bytes, in order.

    Understands ustar, GNU long names and the path and size of pax records; folders are passed over. Raises Refused
    for links, devices and every other kind of member, names that check_name refuses, members that reach beyond the
    end, wrong checksums and nonsense sizes, data after the end, and a file without its end mark.
    """
    at, said = 0, {}  # said: what a long name or pax records say about the next member
    while block := _header_block(descriptor, at, end):
        header = _parse(block, at)
        start, size = at + BLOCK, header.size
        if header.kind in (LONG_NAME, PAX, PAX_GLOBAL):
            said |= _extension(descriptor, header, start, end)
        else:
            name, size = said.get("path", header.name), said.get("size", size)
            said = {}
            _check(name, header.kind, start, size, end)
            if header.kind != FOLDER:
                yield Member(name, start, size)
        at = start + -(-size // BLOCK) * BLOCK
    if said:
        raise Refused("ends after a long name or pax records that belong to no member")


def _header_block(descriptor: int, at: int, end: int) -> bytes | None:
    """The next header; None at the end mark, behind which there is nothing but zeros."""
    block = os.pread(descriptor, BLOCK, at) if at + BLOCK <= end else b""
    if len(block) < BLOCK:
        raise Refused(f"has no end mark at byte {min(at, end)}: it was cut off" if end else "is empty")
    if any(block):
        return block
    if end - at > MAX_TAIL:
        raise Refused(f"has more than {MAX_TAIL >> 20} MiB after its end mark at byte {at}")
    if os.pread(descriptor, end - at, at).strip(b"\0"):
        raise Refused(f"has data after its end mark at byte {at}: tar files put behind each other are not read")
    return None


def _parse(block: bytes, at: int) -> Header:
    try:
        return parse_header(block)
    except Refused as error:
        if at == 0 and (packer := COMPRESSED.get(block[:2])):
            raise Refused(f"is compressed with {packer}: unpack it, images do not get smaller by it") from None
        raise Refused(f"{error}, at byte {at}") from None


def _extension(descriptor: int, header: Header, start: int, end: int) -> dict[str, str | int]:
    if header.size > MAX_EXTENSION:
        raise Refused(f"a name or pax records of {header.size} bytes at byte {start}")
    data = os.pread(descriptor, header.size, start)
    if len(data) < header.size or start + header.size > end:
        raise Refused(f"cut off inside a name or pax records at byte {start}")
    if header.kind == LONG_NAME:
        return {"path": text_of(data)}
    found = parse_pax(data)
    if header.kind == PAX_GLOBAL and found:
        raise Refused(f"pax records at byte {start} that name every member alike")
    return found


def _check(name: str, kind: bytes, start: int, size: int, end: int) -> None:
    check_name(name)
    if kind not in (*REGULAR, FOLDER):
        raise Refused(f"{shown(name)} is {OTHERS.get(kind, f'of the unknown kind {kind!r}')}: only files are read")
    if kind == FOLDER and size:
        raise Refused(f"{shown(name)} is a folder with a size")
    if start + size > end:
        raise Refused(f"{shown(name)} says it has {size} bytes, which reach beyond the end of the file: it was cut off")
