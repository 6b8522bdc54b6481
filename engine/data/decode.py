"""From bytes to a picture, with the header checked before anything is decoded.

Only these four formats are opened, whatever a file is called: Pillow's others reach Ghostscript and worse.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from .sources import Source

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 89_478_485
# What Pillow's readers of these formats raise on bytes that are not what they say.
WRONG_BYTES = (ValueError, IndexError, KeyError, OverflowError, struct.error, zlib.error)
DAMAGE = (OSError, SyntaxError, EOFError, *WRONG_BYTES)


class DecodeError(Exception):
    """Why one image cannot be used, in plain words; what stands before a colon is the kind."""


def open_sample(source: Source, index: int) -> Image.Image:
    """Read one sample and check its header; nothing is decoded. Raises DecodeError."""
    return open_image(read_sample(source, index))


def read_sample(source: Source, index: int) -> bytes | np.ndarray:
    """What source.read gives. Raises DecodeError where that raises OSError."""
    try:
        return source.read(index)
    except FileNotFoundError:
        raise DecodeError("the file is gone") from None
    except PermissionError:
        raise DecodeError("permission denied") from None
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from None


def open_image(data: bytes | np.ndarray) -> Image.Image:
    """A picture whose size is known and allowed, its pixels not yet decoded.

    data: an encoded file, or raw uint8 [H, W, 1 or 3]. Raises DecodeError, also above MAX_PIXELS: a few
    bytes can claim gigabytes.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[:, :, 0] if data.shape[2] == 1 else data)
    if not data:
        raise DecodeError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size: checked below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DecodeError("not a JPEG, PNG, WebP or BMP image") from None
    except Image.DecompressionBombError:
        raise DecodeError(f"too large: above the cap of {MAX_PIXELS} pixels") from None
    except DAMAGE as error:
        raise DecodeError(f"damaged header: {error}") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise DecodeError(f"no pixels: {width} x {height}")
    check_size(width, height)
    return image


def check_size(width: int, height: int) -> None:
    """DecodeError above MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"too large: {width} x {height} pixels, above the cap of {MAX_PIXELS}")


def decode(image: Image.Image, channels: int) -> Image.Image:
    """Decode an opened picture, as 8-bit gray (channels 1) or RGB (3). Raises DecodeError.

    [O] As in torchvision's folder loader, transparency is dropped and the EXIF orientation is not applied.
    A JPEG with damaged bytes in the middle decodes: nobody can see that.
    """
    try:
        image.load()
    except DAMAGE as error:
        raise DecodeError(f"truncated or damaged: {error}") from None
    if image.mode.startswith("I;16"):  # Pillow would cut these at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
