"""Images for evaluation: one deterministic view, nothing drawn."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decode import DecodeError, decode, open_sample
from .image_ops import as_array, crop_resize
from .sources import Source

CENTRE = 224 / 256  # [S, torchvision's evaluation] side of the centre crop / shorter side
MAX_THREADS = 8

log = logging.getLogger("misplace.data")


def load_eval(source: Source, indices: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, S, S, C] and the indices int64 [n] they belong to, in the order asked for.

    Images that cannot be read are left out of both, each named in a warning of the logger `misplace.data`.
    """
    wanted = [int(i) for i in indices]
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:  # Pillow releases the GIL while it decodes
        views = list(pool.map(lambda i: _load(source, i, image_size), wanted))
    kept = [(i, view) for i, view in zip(wanted, views) if view is not None]
    shape = (len(kept), image_size, image_size, source.channels)
    images = torch.empty(shape, dtype=torch.uint8)
    for row, (_, view) in zip(images.numpy(), kept):
        row[:] = view
    return images, torch.tensor([i for i, _ in kept], dtype=torch.int64)


def _load(source: Source, index: int, image_size: int) -> np.ndarray | None:
    try:
        return centre_view(decode(open_sample(source, index), source.channels), image_size)
    except DecodeError as error:
        log.warning("left out of the evaluation: %s (%s)", source.path_of(index), error)
        return None


def centre_view(image: Image.Image, size: int) -> np.ndarray:
    """The middle square, uint8 [size, size, C]: 7/8 of the shorter side as in resize 256, crop 224 [S].

    [O] Never fewer pixels than `size` where the image has them; an image of the right size is returned as
    it is.
    """
    width, height = image.size
    if width == height == size:
        return as_array(image)
    return crop_resize(image, centre_box(width, height, size), size)


def centre_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of centre_view in a picture of these sides, fractional pixels."""
    shorter = min(width, height)
    side = max(shorter * CENTRE, min(shorter, size))
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def centre_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask [H, W] under the pixels of centre_view, uint8 [size, size]: the nearest value, none mixed."""
    picture = Image.fromarray(mask)
    box = centre_box(*picture.size, size)
    return np.asarray(picture.resize((size, size), Image.Resampling.NEAREST, box=box))
