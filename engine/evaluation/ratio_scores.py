"""Scores that are no mean over images: a mean over classes of sums over images, as mAP and mIoU are."""

import torch
from torch import Tensor

from .scores import RESAMPLES, Score, interval


def mean_ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    """[..., C] and [..., C] -> [...]: the mean over classes of numerator / denominator; a class with 0 is left out."""
    there = denominators > 0
    ratios = torch.where(there, numerators / denominators.clamp(min=1e-300), 0.0)
    return ratios.sum(-1) / there.sum(-1)


def ratio_score(
    encoder: str,
    measure: str,
    numerators: Tensor,  # [n, C], per test image and class
    denominators: Tensor,  # [n, C]
    *,
    chance: float | None = None,
    seed: int = 0,
) -> Score:
    """mean_ratio of the sums over images, with its interval when the images are drawn again with replacement."""
    numerators, denominators = numerators.double().cpu(), denominators.double().cpu()
    value = mean_ratio(numerators.sum(0), denominators.sum(0))
    low, high = interval(bootstrap_ratios(numerators, denominators, seed=seed))
    return Score(encoder, measure, float(value), low, high, chance)


def bootstrap_ratios(
    numerators: Tensor,  # fp64 [n, C]
    denominators: Tensor,  # fp64 [n, C]
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Tensor:
    """mean_ratio of each of `resamples` samples of n images, fp64 [resamples]; one seed, one answer."""
    generator = torch.Generator().manual_seed(seed)
    samples = numerators.new_empty(resamples)
    for i in range(resamples):
        drawn = torch.randint(len(numerators), (len(numerators),), generator=generator)
        samples[i] = mean_ratio(numerators[drawn].sum(0), denominators[drawn].sum(0))
    return samples


def sums_by_group(
    values: Tensor,  # [n]
    labels: Tensor,  # int64 [n], 0..C-1
    groups: Tensor,  # int64 [n], of any numbers
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Sums and counts of the values by group (the parts of one image) and class, fp64 [G, C] each."""
    numbers, group = torch.unique(groups.cpu(), return_inverse=True)
    cell = group * num_classes + labels.cpu()
    sums = torch.zeros(len(numbers) * num_classes, dtype=torch.float64)
    counts = torch.zeros_like(sums).index_add_(0, cell, torch.ones(len(cell), dtype=torch.float64))
    sums.index_add_(0, cell, values.double().cpu())
    return sums.view(-1, num_classes), counts.view(-1, num_classes)
