"""A measured accuracy with its bootstrap interval: what every protocol returns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES, LEVEL = 1000, 0.95

Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """One figure of one encoder. low, high: of its 95 % interval over test images; chance: None where there is none.

    deviation: between training sets that were drawn, where the figure is a mean over them.
    """

    encoder: str
    measure: str
    value: float
    low: float
    high: float
    chance: float | None = None
    deviation: float | None = None


def score(
    encoder: str,
    measure: str,
    values: Tensor,  # [n], per test image: 1 where it was right
    *,
    chance: float | None = None,
    groups: Tensor | None = None,  # int64 [n]
    seed: int = 0,
) -> Score:
    """The mean of `values`, with the interval of the mean under resampling (bootstrap_means)."""
    low, high = interval(bootstrap_means(values, groups=groups, seed=seed))
    return Score(encoder, measure, float(values.double().mean()), low, high, chance)


def bootstrap_means(
    values: Tensor,  # [n]
    *,
    groups: Tensor | None = None,  # int64 [n]
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Tensor:
    """The mean of each of `resamples` samples of n values drawn with replacement, fp64 [resamples].

    groups: values of one group (the parts of one image) are drawn together. One seed, one answer, so two encoders'
    means over the same test images are means over the same draws, and their difference is paired.
    """
    values = values.double().cpu()
    if groups is None:
        sums, counts = values, torch.ones_like(values)
    else:
        _, group = torch.unique(groups.cpu(), return_inverse=True)
        sums = values.new_zeros(int(group.max()) + 1).index_add_(0, group, values)
        counts = torch.zeros_like(sums).index_add_(0, group, torch.ones_like(values))
    generator = torch.Generator().manual_seed(seed)
    means = values.new_empty(resamples)
    for i in range(resamples):
        drawn = torch.randint(len(sums), (len(sums),), generator=generator)
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    return means


def interval(samples: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    tail = (1 - level) / 2
    low, high = torch.quantile(samples.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
