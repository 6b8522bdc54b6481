"""Where the parts of a figure are, by their kind: left and right cannot be told apart in a mirrored figure."""

from pathlib import Path

import numpy as np

from misplace.engine.errors import UserError

from ..decode import DecodeError, decode, open_image
from ..parts import Part
from .skeleton import PART_KINDS, PART_NAMES

PART_CLASSES = tuple(dict.fromkeys(PART_KINDS))
CLASS_OF_PART = tuple(PART_CLASSES.index(kind) for kind in PART_KINDS)
CLASS_OF_VALUE = np.array([0, *(1 + c for c in CLASS_OF_PART)], dtype=np.uint8)  # of the stored mask

# [O] A part's square: around the middle of its visible pixels, a quarter wider than they are. A part of which less
# than a quarter is seen shows mostly what hides it.
MARGIN = 1.25
MIN_VISIBILITY = 0.25


def read_mask(file: Path) -> np.ndarray:
    """uint8 [H, W]: 0 background, 1 + i for part i of PART_NAMES. UserError where it is no such mask."""
    try:
        mask = np.asarray(decode(open_image(file.read_bytes()), 1))
    except (OSError, DecodeError) as error:
        raise UserError(f"poses: the mask {file} cannot be read: {error}; render the set again") from None
    if mask.max() > len(PART_NAMES):
        raise UserError(f"poses: {file} is no mask of parts: it has the value {mask.max()}")
    return mask


def parts_in(mask: np.ndarray, visibility: tuple[float, ...]) -> tuple[Part, ...]:
    """One Part for each of PART_NAMES. visibility: as Annotation says it."""
    return tuple(_part(mask, part, share) for part, share in enumerate(visibility))


def _part(mask: np.ndarray, part: int, share: float) -> Part:
    ys, xs = np.nonzero(mask == part + 1)
    if not len(xs) or share < MIN_VISIBILITY:
        return Part(CLASS_OF_PART[part], 0.0, 0.0, 0.0, False)
    left, right, top, bottom = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    side = MARGIN * max(right - left, bottom - top)
    return Part(CLASS_OF_PART[part], float(left + right) / 2, float(top + bottom) / 2, float(side), True)
