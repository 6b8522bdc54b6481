"""The members of a tar file, from its headers alone, with everything refused that a data set has no use for.

ustar, GNU long names and pax paths and sizes [S, POSIX.1-2001 pax; GNU tar manual]. Python's tarfile follows links,
skips damage and takes devices: what is needed here is less than it and stricter.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_MEMBER_BYTES = 1 << 29  # as a file of an image folder
MAX_NAME_BYTES = 1 << 16  # of a long name or a pax header
FILES = (b"0", b"\0", b"7")
FOLDER, GNU_NAME, PAX, PAX_GLOBAL = b"5", b"L", b"x", b"g"
REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe",
    b"K": "a link", b"S": "a sparse file",
}  # fmt: skip


class TarError(Exception):
    """Why a tar file is refused: the member by name, in plain words."""


class Member(NamedTuple):
    """A regular file. offset: where its bytes begin."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The regular files in order; reads headers only. Raises TarError and OSError."""
    end, at, long_name, pax = os.fstat(file.fileno()).st_size, 0, None, {}
    while True:
        header = _read(file, at, BLOCK, end)
        if not any(header):
            return
        name = long_name or pax.get("path") or _name(header)
        _check_sum(header, name)
        kind, size = header[156:157], _number(header[124:136], name)
        at += BLOCK
        if kind in (GNU_NAME, PAX, PAX_GLOBAL):
            if size > MAX_NAME_BYTES:
                raise TarError(f"{name}: a header of {size} bytes")
            data = _read(file, at, size, end)
            if kind == GNU_NAME:
                long_name = _text(data.rstrip(b"\0"))
            elif kind == PAX:
                pax = _pax_fields(data, name)
        else:
            size = _pax_size(pax, name) if "size" in pax else size
            _check_name(name)
            if kind in FILES:
                _check_size(name, at, size, end)
                yield Member(name, at, size)
            elif kind != FOLDER:
                raise TarError(f"{name!r} is {REFUSED.get(kind, f'of the unknown kind {kind!r}')}: refused")
            long_name, pax = None, {}
        at += -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, at: int, size: int, end: int) -> bytes:
    if at + size > end:
        raise TarError("truncated: it ends without the empty block that closes a tar file")
    return os.pread(file.fileno(), size, at)


def _name(header: bytes) -> str:
    name, prefix = (header[a:b].split(b"\0")[0] for a, b in ((0, 100), (345, 500)))
    is_ustar = header[257:263] == b"ustar\0"
    return _text(prefix + b"/" + name if is_ustar and prefix else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _check_sum(header: bytes, name: str) -> None:
    """The sum of the header's bytes, its own field taken as spaces."""
    plain = header[:148] + b" " * 8 + header[156:]
    if _number(header[148:156], name) != sum(plain):
        raise TarError(f"{name!r}: the checksum of its header is wrong")


def _number(field: bytes, name: str) -> int:
    """Octal digits, or GNU's base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if not all(byte in b"01234567" for byte in text):
        raise TarError(f"{name!r}: {field!r} in its header is not a number")
    return int(text or b"0", 8)


def _pax_fields(data: bytes, name: str) -> dict[str, str]:
    """ "LENGTH KEY=VALUE\\n" each; LENGTH counts all of it."""
    fields, at = {}, 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n") or len(record) != length:
            raise TarError(f"{name!r}: a damaged pax header")
        fields[_text(key)] = _text(value)
        at += length
    return fields


def _pax_size(pax: dict[str, str], name: str) -> int:
    if not (pax["size"].isascii() and pax["size"].isdigit() and len(pax["size"]) < 20):
        raise TarError(f"{name!r}: {pax['size'][:40]!r} is no size")
    return int(pax["size"])


def _check_name(name: str) -> None:
    if not name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise TarError(f"{name!r} is no name for a file: refused")
    if name.startswith("/"):
        raise TarError(f"{name!r} is an absolute name: refused")
    if ".." in name.split("/"):
        raise TarError(f"{name!r} leads out of its folder: refused")


def _check_size(name: str, at: int, size: int, end: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise TarError(f"{name!r} claims {size} bytes, above the cap of {MAX_MEMBER_BYTES >> 20} MiB: refused")
    if at + size > end:
        raise TarError(f"truncated: {name!r} claims {size} bytes and {max(0, end - at)} are left")
