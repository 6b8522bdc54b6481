"""Soft targets, mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch of pictures.

As timm applies them for MAE [S]: one draw for the whole batch, its partner the batch backwards, mixup or CutMix with
equal probability where both are on. Pictures stay uint8, rounded to the nearest level, as in timm's FastCollateMixup.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Box(NamedTuple):
    """Rows top to bottom, columns left to right, ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """fp32 [B, num_classes]: 1 - smoothing on the label, the rest spread over all classes, label included."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_add_(1, labels[:, None], torch.full_like(targets[:, :1], 1 - smoothing))


def mixup(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """`share` of each picture and the rest of its partner. images: uint8 [B, H, W, C]; targets: fp32 [B, classes]."""
    pixels = images.float()
    mixed = (pixels.flip(0) * (1 - share)).add_(pixels, alpha=share).round_().to(torch.uint8)
    return mixed, _mixed_targets(targets, share)


def cutmix(images: Tensor, targets: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """The partner's pixels inside the box; the targets' shares are those of the areas."""
    mixed = images.clone()
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    mixed[:, rows, columns] = images.flip(0)[:, rows, columns]
    height, width = images.shape[1:3]
    return mixed, _mixed_targets(targets, 1 - box.area / (height * width))


def draw_box(height: int, width: int, share: float, generator: torch.Generator) -> Box:
    """A box of 1 - share of the picture's area, its centre anywhere, cut off at the picture's edges."""
    side = math.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    y, x = (int(torch.randint(length, (1,), generator=generator)) for length in (height, width))
    top, left = y - tall // 2, x - wide // 2
    return Box(max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width))


def mix(
    images: Tensor,  # uint8 [B, H, W, C]
    targets: Tensor,  # fp32 [B, classes]
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The batch mixed by a share drawn from Beta(alpha, alpha); an alpha of 0 is never used."""
    ways = [way for way, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha > 0]
    if not ways:
        return images, targets
    way = ways[int(torch.randint(len(ways), (1,), generator=generator))]
    share = draw_share(mixup_alpha if way == "mixup" else cutmix_alpha, generator)
    if way == "mixup":
        return mixup(images, targets, share)
    return cutmix(images, targets, draw_box(*images.shape[1:3], share, generator))


def draw_share(alpha: float, generator: torch.Generator) -> float:
    """From Beta(alpha, alpha)."""
    seed = int(torch.randint(2**62, (1,), generator=generator))  # torch's own Beta takes no generator
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _mixed_targets(targets: Tensor, share: float) -> Tensor:
    return (targets.flip(0) * (1 - share)).add_(targets, alpha=share)
