"""The size of a JPEG, read from its header, where it is of the kind that every decoder agrees on."""

import struct
from typing import NamedTuple

START, END = b"\xff\xd8", b"\xff\xd9"
# baseline, extended and progressive DCT, Huffman coded [S, ITU-T T.81 table B.1]
FRAMES = {0xC0, 0xC1, 0xC2}
OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
SCAN, ADOBE = 0xDA, 0xEE
YCC = 1  # the transform that an Adobe segment names for YCbCr


class JpegSize(NamedTuple):
    height: int
    width: int


def plain_jpeg_size(data: bytes) -> JpegSize | None:
    """Height and width of an 8-bit gray or YCbCr JPEG that has its end; None for whatever else.

    None says nothing against a file: Pillow then looks at it, and says what is wrong if anything is.
    """
    if not data.startswith(START) or not data.endswith(END):
        return None
    try:
        return _walk(data)
    except (struct.error, IndexError):  # cut off inside its header
        return None


def _walk(data: bytes) -> JpegSize | None:
    at, size = len(START), None
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker == SCAN:
            return size
        if marker in WITHOUT_LENGTH or marker in OTHER_FRAMES:
            return None
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in FRAMES:
            size = _frame(data, at + 4)
            if size is None:
                return None
        elif marker == ADOBE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] != YCC:
            return None
        at += 2 + length


def _frame(data: bytes, at: int) -> JpegSize | None:
    precision, height, width, components = struct.unpack_from(">BHHB", data, at)
    if precision != 8 or not height or not width or components not in (1, 3):
        return None
    return JpegSize(height, width)
