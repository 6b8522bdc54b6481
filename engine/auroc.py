"""Area under the ROC curve."""

import torch
from torch import Tensor


@torch.no_grad()
def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """The chance that a positive scores above a negative; ties count half. None when one of the two is missing.

    scores: any shape, floating; positive: bool, the same shape. (Mann-Whitney U over mid-ranks.)
    """
    scores, positive = scores.flatten().double(), positive.flatten()
    num_positive = int(positive.sum())
    num_negative = positive.numel() - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = counts.cumsum(0) - (counts - 1) / 2
    rank_sum = mid_rank[inverse][positive].sum().item()
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)
