"""Random resized crop: the boxes, without touching a pixel."""

import math

import torch
from torch import Tensor

ATTEMPTS = 10


def random_boxes(
    numbers: Tensor,  # float64 [B, ATTEMPTS, 4], uniform in [0, 1): area, ratio, x, y
    sizes: Tensor,  # [B, 2], height and width of each image in pixels
    scale: tuple[float, float],  # range of the crop's share of the image's area
    ratio: tuple[float, float],  # range of its width / height, uniform in the logarithm
) -> Tensor:
    """Boxes float64 [B, 4]: left, top, right, bottom in pixels, inside the image.

    [S, torchvision's RandomResizedCrop] the first of ten attempts that fits; else the largest box in the
    middle whose ratio is in range, whatever its area. [O] boxes are not rounded to whole pixels.
    """
    height, width = sizes.to(torch.float64).unbind(1)
    area = (height * width)[:, None] * _between(numbers[..., 0], *scale)
    aspect = _between(numbers[..., 1], *map(math.log, ratio)).exp()
    widths, heights = (area * aspect).sqrt(), (area / aspect).sqrt()
    fits = (widths <= width[:, None]) & (heights <= height[:, None])

    attempts = torch.arange(ATTEMPTS).expand_as(fits)
    first = attempts.masked_fill(~fits, ATTEMPTS).amin(1)
    found = first < ATTEMPTS
    chosen = first.clamp(max=ATTEMPTS - 1)[:, None]
    x, y = (numbers[..., n].gather(1, chosen)[:, 0].where(found, 0.5) for n in (2, 3))
    box_width = widths.gather(1, chosen)[:, 0].where(found, torch.minimum(width, height * ratio[1]))
    box_height = heights.gather(1, chosen)[:, 0].where(found, torch.minimum(height, width / ratio[0]))

    left, top = x * (width - box_width), y * (height - box_height)
    right, bottom = torch.minimum(left + box_width, width), torch.minimum(top + box_height, height)
    return torch.stack((left, top, right, bottom), dim=1)


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * numbers
