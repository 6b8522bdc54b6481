"""A source whose pictures are changed as they are read, and changes that any picture can be given.

Every change is a pure function of the picture, its number and a seed.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter

from misplace.engine.data import Source
from misplace.engine.data.decode import decode, open_sample
from misplace.engine.data.evaluation import centre_view

from .jigsaw import cut_size, resize, shuffle

Change = Callable[[int, Image.Image], np.ndarray]

COLOURS = 12
MODE_SHARE = 1 / 24  # side of the mode filter's window, of the picture's
OCCLUSION, TILES, DONOR = range(3)  # which of a picture's random numbers


class Variant:
    """`source` with each picture replaced by change(number, picture): uint8 [H, W, C]. Labels stay."""

    def __init__(self, source: Source, name: str, change: Change):
        self.source, self.change = source, change
        self.name = f"{source.name}, {name}"
        self.image_size, self.patch_size, self.channels = source.image_size, source.patch_size, source.channels
        self.mean, self.std, self.class_names = source.mean, source.std, source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> np.ndarray:
        """Raises DecodeError where the picture cannot be used."""
        return self.change(index, decode(open_sample(self.source, index), self.channels))

    def path_of(self, index: int) -> str:
        return self.source.path_of(index)

    def label(self, index: int) -> int:
        return self.source.label(index)


def dice(seed: int, index: int, stream: int) -> np.random.Generator:
    """The random numbers of one picture for one purpose."""
    return np.random.default_rng((seed, index, stream))


def occluded(source: Source, share: float, *, size: int, block: int, seed: int) -> Variant:
    """[O] The given share of the block x block squares of the middle view is painted in the source's mean colour.

    Which squares is drawn anew for each picture; those painted at a smaller share are among those at a larger one.
    """
    colour = np.array([round(255 * mean) for mean in source.mean], dtype=np.uint8)

    def change(index: int, image: Image.Image) -> np.ndarray:
        view = centre_view(image, size).copy()
        side = -(-size // block)
        for square in dice(seed, index, OCCLUSION).permutation(side * side)[: round(share * side * side)]:
            row, column = divmod(int(square), side)
            view[row * block : (row + 1) * block, column * block : (column + 1) * block] = colour
        return view

    return Variant(source, f"{share:.0%} occluded", change)


def shuffled(source: Source, grid: int, *, size: int, seed: int) -> Variant:
    """[O] The middle view cut into grid x grid tiles, put together in another order: the arrangement goes, texture
    stays. Never in the true order."""

    def change(index: int, image: Image.Image) -> np.ndarray:
        rng = dice(seed, index, TILES)
        order = rng.permutation(grid * grid)
        while (order == np.arange(grid * grid)).all():
            order = rng.permutation(grid * grid)
        view = torch.from_numpy(centre_view(image, cut_size(size, grid)).copy())[None]
        return resize(shuffle(view, torch.from_numpy(order)[None], grid), size)[0].numpy()

    return Variant(source, f"{grid} x {grid} tiles shuffled", change)


def stylised(source: Source, donors: Source, donor_of: Callable[[int], int]) -> Variant:
    """[O] Painted in another picture's colours: each channel is given the histogram of a donor's, the colours are cut
    to 12 (median cut), and each pixel takes the colour most common in a window of 1/24 of the side, 3 pixels or more.
    """

    def change(index: int, image: Image.Image) -> np.ndarray:
        donor = np.asarray(decode(open_sample(donors, donor_of(index)), source.channels))
        matched = Image.fromarray(match_histogram(np.asarray(image), donor))
        few = matched.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        window = max(3, round(min(image.size) * MODE_SHARE) // 2 * 2 + 1)
        numbers = np.asarray(Image.fromarray(np.asarray(few)).filter(ImageFilter.ModeFilter(window)))
        return np.array(few.getpalette(), dtype=np.uint8).reshape(-1, 3)[numbers][:, :, : source.channels]

    return Variant(source, "stylised", change)


def edges(source: Source) -> Variant:
    """[O] Only outlines: the length of luma's Sobel gradient, stretched to 0-255 and inverted, in every channel."""

    def change(index: int, image: Image.Image) -> np.ndarray:
        luma = np.pad(np.asarray(image.convert("L"), dtype=np.float32), 1, mode="edge")
        across, down = _sobel(luma), _sobel(luma.T).T
        length = np.hypot(across, down)
        drawn = 255 - np.round(255 * length / max(float(length.max()), 1.0)).astype(np.uint8)
        return np.repeat(drawn[:, :, None], source.channels, axis=2)

    return Variant(source, "edges", change)


def match_histogram(image: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, C]: each channel's values moved to those of equal rank in the donor's channel."""
    if image.ndim == 3:
        planes = zip(np.moveaxis(image, 2, 0), np.moveaxis(donor, 2, 0))
        return np.stack([match_histogram(*pair) for pair in planes], axis=2)
    have, want = (np.bincount(plane.ravel(), minlength=256) for plane in (image, donor))
    rank = (np.cumsum(have) - have / 2) / have.sum()  # of the middle pixel of each value
    levels = np.searchsorted(np.cumsum(want) / want.sum(), rank).clip(0, 255)
    return levels.astype(np.uint8)[image]


def _sobel(padded: np.ndarray) -> np.ndarray:
    """The gradient along a row, [H, W] of [H + 2, W + 2]."""
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return smooth[:, 2:] - smooth[:, :-2]
