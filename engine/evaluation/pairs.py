"""Pairs of crops of one picture: where their boxes lie, what is to be predicted of them, and how well it was."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from misplace.engine.data import Source
from misplace.engine.data.crop import ATTEMPTS, random_boxes
from misplace.engine.data.image_ops import crop_resize

from .scores import Score, bootstrap_means, interval
from .variants import Variant

RATIO = (3 / 4, 4 / 3)
POSITION, SCALE = slice(0, 2), slice(2, 4)


def draw_pairs(
    count: int,
    pairs: int,  # of each picture
    area: tuple[float, float],  # range of a crop's share of the picture
    generator: torch.Generator,
) -> Tensor:
    """Boxes float64 [count, pairs, 2, 4]: left, top, right, bottom in [0, 1] of the picture's largest middle square.

    [O] Both boxes of a pair are drawn alike and independently, as random resized crops are; they may overlap.
    """
    numbers = torch.rand(count * pairs * 2, ATTEMPTS, 4, generator=generator, dtype=torch.float64)
    boxes = random_boxes(numbers, torch.ones(len(numbers), 2), area, RATIO)
    return boxes.view(count, pairs, 2, 4)


def pair_targets(boxes: Tensor) -> Tensor:
    """float64 [..., 4]: (dy, dx) of the second box's centre in heights and widths of the first, ln h2/h1, ln w2/w1.

    boxes: [..., 2, 4].
    """
    size = boxes[..., 2:] - boxes[..., :2]  # width, height
    centre = (boxes[..., 2:] + boxes[..., :2]) / 2
    shift = (centre[..., 1, :] - centre[..., 0, :]) / size[..., 0, :]
    return torch.cat([shift.flip(-1), (size[..., 1, :] / size[..., 0, :]).log().flip(-1)], dim=-1)


def crops(source: Source, boxes: dict[int, tuple[float, ...]], size: int) -> Variant:
    """A source whose pictures are the given part of each picture, `size` pixels on a side."""

    def crop(index: int, image: Image.Image) -> np.ndarray:
        side = min(image.size)
        left, top = ((length - side) / 2 for length in image.size)
        x0, y0, x1, y1 = (side * edge for edge in boxes[index])
        return crop_resize(image, (left + x0, top + y0, left + x1, top + y1), size)

    return Variant(source, "crops", crop)


def r_squared(
    encoder: str,
    measure: str,
    predicted: Tensor,  # [n, T]
    targets: Tensor,  # [n, T]
    baseline: Tensor,  # [T], the mean of the training targets
    *,
    groups: Tensor | None = None,  # int64 [n], the picture of each
    seed: int = 0,
) -> Score:
    """R^2 = 1 - squared error / squared error of the training mean, the mean over targets. Chance 0, perfect 1.

    The interval is the bootstrap's over pictures, both errors from the same draws.
    """
    predicted, targets, baseline = predicted.double().cpu(), targets.double().cpu(), baseline.double().cpu()
    value, samples = 0.0, torch.zeros(1, dtype=torch.float64)
    for t in range(targets.shape[1]):
        error, spread = (predicted[:, t] - targets[:, t]) ** 2, (baseline[t] - targets[:, t]) ** 2
        if not float(spread.sum()):
            return Score(encoder, measure, math.nan, math.nan, math.nan, 0.0)
        value += 1 - float(error.mean() / spread.mean())
        drawn = [bootstrap_means(values, groups=groups, seed=seed) for values in (error, spread)]
        samples = samples + 1 - drawn[0] / drawn[1]
    low, high = interval(samples / targets.shape[1])
    return Score(encoder, measure, value / targets.shape[1], low, high, 0.0)
