"""The operations on pixels, each a pure function on uint8 arrays [H, W, C]."""

import math

import numpy as np
from PIL import Image, ImageFilter

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
FROM_YIQ = np.linalg.inv(TO_YIQ)
GRAY = np.tile(LUMA, (3, 1))
LEVELS = np.arange(256)


def crop_resize(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part of a picture inside a box (left, top, right, bottom; fractional pixels): [size, size, C].

    Antialiased bicubic, a = -1/2.
    """
    return as_array(image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box)))


def jitter(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float, grayscale: bool
) -> np.ndarray:
    """Brightness, contrast, saturation, hue, grayscale, in this order [O], as one affine map of the colour x:

        brightness  b x
        contrast    c x + (1 - c) m, where m is the mean luma of the image so far
        saturation  s x + (1 - s) luma(x)
        hue         rotation by `hue` turns of the (I, Q) plane of YIQ: luma stays
        grayscale   luma(x)

    [O] Computed without rounding between them, rounded half up and clipped to [0, 255] once. The last three
    keep grays as they are, so the offset is (1 - c) m on every channel. One channel: brightness and
    contrast only.
    """
    gain = contrast * brightness
    colour = image.shape[2] == 3 and (saturation != 1 or hue != 0 or grayscale)
    if gain == 1 == brightness and not colour:
        return image
    offset = (1 - contrast) * brightness * mean_luma(image)
    if not colour:
        return levels(image, gain, offset)
    matrix = hue_matrix(hue) @ saturation_matrix(saturation)
    if grayscale:
        matrix = GRAY @ matrix
    return colour_affine(image, gain * matrix, offset)


def mean_luma(image: np.ndarray) -> float:
    """Mean over the pixels of the luma (of the value, where there is one channel), unrounded."""
    height, width, channels = image.shape
    columns = np.add.reduce(image.reshape(height, -1), axis=0, dtype=np.uint32)
    sums = columns.reshape(width, channels).sum(axis=0)
    return float(sums @ LUMA if channels == 3 else sums[0]) / (height * width)


def levels(image: np.ndarray, gain: float, offset: float) -> np.ndarray:
    """gain x + offset on every channel, rounded half up and clipped."""
    return np.clip(np.floor(gain * LEVELS + (offset + 0.5)), 0, 255).astype(np.uint8)[image]


def saturation_matrix(factor: float) -> np.ndarray:
    """[3, 3]: blends a colour with its luma."""
    return factor * np.eye(3) + (1 - factor) * GRAY


def hue_matrix(turns: float) -> np.ndarray:
    """[3, 3]: rotates the (I, Q) plane; a positive turn takes red towards yellow."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    return FROM_YIQ @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ TO_YIQ


def colour_affine(image: np.ndarray, matrix: np.ndarray, offset: float) -> np.ndarray:
    """matrix [3, 3] times each colour, plus an offset on all channels, rounded half up and clipped."""
    rows = np.column_stack((matrix, (offset, offset, offset)))
    return as_array(Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist())))


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of standard deviation sigma pixels; the border is repeated.

    Pillow's: three box filters of fractional width one after the other, as MoCo v3 uses it [S].
    """
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    return as_array(picture.filter(ImageFilter.GaussianBlur(sigma)))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """255 - x where x >= threshold, else x."""
    return np.where(threshold > LEVELS, LEVELS, 255 - LEVELS).astype(np.uint8)[image]


def flip(image: np.ndarray) -> np.ndarray:
    """Left becomes right."""
    return image[:, ::-1]


def as_array(image: Image.Image) -> np.ndarray:
    """A decoded picture as uint8 [H, W, C]."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]
