"""Colour jitter and grayscale of many samples at once, as affine maps of the colour: image_ops.jitter's."""

from typing import NamedTuple

import numpy as np

from .augmentation import ViewParameters
from .image_ops import FROM_YIQ, GRAY, TO_YIQ

NONE, LEVELS, AFFINE = range(3)  # what image_ops.jitter does: nothing, a table of levels, a matrix


class ColourMaps(NamedTuple):
    """x -> matrix x + shade m, m the mean luma of the view; fp64.

    matrix [B, C, C]; shade [B]; kind [B]: NONE, LEVELS (the matrix is a multiple of the identity) or AFFINE.
    """

    matrix: np.ndarray
    shade: np.ndarray
    kind: np.ndarray


def colour_maps(parameters: ViewParameters, channels: int) -> ColourMaps:
    """The maps of one view of each sample."""
    brightness, contrast, saturation, hue, grayscale = (
        field.numpy()
        for field in parameters[parameters._fields.index("brightness") : parameters._fields.index("blur_sigma")]
    )
    gain, shade = contrast * brightness, (1 - contrast) * brightness
    coloured = (saturation != 1) | (hue != 0) | grayscale if channels == 3 else np.zeros(len(gain), dtype=bool)
    kind = np.where(coloured, AFFINE, np.where((gain == 1) & (brightness == 1), NONE, LEVELS))
    matrix = np.broadcast_to(np.eye(channels), (len(gain), channels, channels))
    if channels == 3:
        matrix = _hue(hue) @ (saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * GRAY)
        matrix = np.where(grayscale[:, None, None], GRAY @ matrix, matrix)
        matrix = np.where(coloured[:, None, None], matrix, np.eye(3))
    return ColourMaps(gain[:, None, None] * matrix, shade, kind)


def _hue(turns: np.ndarray) -> np.ndarray:
    """image_ops.hue_matrix of each."""
    rotation = np.zeros((len(turns), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(2 * np.pi * turns)
    rotation[:, 1, 2] = np.sin(2 * np.pi * turns)
    rotation[:, 2, 1] = -rotation[:, 1, 2]
    return FROM_YIQ @ rotation @ TO_YIQ
