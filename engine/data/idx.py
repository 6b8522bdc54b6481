"""The idx format of MNIST: two zero bytes, a type, the number of axes, their lengths, the values."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from misplace.engine.errors import UserError

UBYTES = b"\0\0\x08"
MAX_AXES = 4
MAX_BYTES = 1 << 28


def read_idx(file: Path) -> np.ndarray:
    """An idx file of unsigned bytes, plain or gzipped (.gz), as uint8.

    UserError where it is damaged or cut off.
    """
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as data:
            magic = data.read(4)
            axes = magic[-1] if magic[:3] == UBYTES else 0
            if len(magic) < 4 or not 1 <= axes <= MAX_AXES:
                raise UserError(f"{file} is not an idx file of bytes")
            shape = [int.from_bytes(data.read(4)) for _ in range(axes)]
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise UserError(f"{file} claims {size} bytes, more than {MAX_BYTES}")
            values = data.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if len(values) != size:
        has = len(values) if len(values) < size else "more"
        raise UserError(f"{file} is damaged: its header says {size} values, it has {has}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
