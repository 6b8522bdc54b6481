"""A plan as eager training code draws it: one random permutation per image, then index arithmetic.

The i-th wrong token takes the i-th dropped position, as in ours, but without our guarantees: a plan is no
function of the sample index, and where the dropped positions run out the last one is handed out again.
"""

import torch
from torch import Tensor


def eager_plan(
    batch: int,
    num_patches: int,
    num_kept: int,
    wrong_rate: float,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:  # src int64 [B, K], pos int64 [B, K], wrong bool [B, K]
    """rand -> argsort -> gather -> where."""
    permutation = torch.rand(batch, num_patches, device=device).argsort(dim=1)
    kept, dropped = permutation[:, :num_kept], permutation[:, num_kept:]
    wrong = torch.rand(batch, num_kept, device=device) < wrong_rate
    if dropped.shape[1] == 0:
        dropped = kept
    rank = (wrong.cumsum(dim=1) - 1).clamp(min=0, max=dropped.shape[1] - 1)
    donor = dropped.gather(1, rank)
    return kept, torch.where(wrong, donor, kept), wrong
