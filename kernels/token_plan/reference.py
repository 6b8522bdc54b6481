"""token_plan in eager PyTorch: the specification.

Letters: L patches, K kept, D = L - K dropped, W wrong among the kept of one image.

    word0, word1    the first two Philox words of (seed; patch | view << 16 | stream << 24, epoch, index)
    permutation     the patches in ascending order of (word0, patch): no two keys are equal
    kept            the first K of the permutation; the tail, in its order, are the dropped
    flagged         a kept token whose word1 < wrong_threshold (= wrong_rate * 2^32): independent Bernoulli
    w               the ordinal of a flagged token, counted in permutation order
    position        w < D:   the patch permutation[K + w], a dropped one, taken once
                    w >= D:  the patch of the next flagged token with w >= D, the last one takes the first's;
                             a lone one thereby gets its own patch and is not wrong
    wrong           position != patch
    order           tokens are written in ascending patch order

The permutation, "the first K are kept" and the position from the tail are what the paper's authors intend
[S]. That the i-th wrong token takes the i-th dropped position, the cyclic exchange and the lone remainder are
ours [O]: without them two tokens could share a position, which gives the answer away. The ascending order is
ours [O] too: a transformer sees a set, reads are coalesced, and with nothing dropped and nothing wrong the
plan is the dense plan.
"""

import torch
from torch import Tensor

from ..philox import Stream, draw


def token_plan_reference(
    index: Tensor,  # int64 [B]
    num_patches: int,
    num_kept: int,
    seed: int,
    epoch: int,
    view: int,
    wrong_threshold: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """src int32, pos int32, wrong bool, each [B, K]. wrong_threshold: in [0, 2^32]; seed: modulo 2^64."""
    words = draw(index, num_patches, seed=seed % 2**64, epoch=epoch, view=view, stream=Stream.TOKEN_PLAN)
    patch = torch.arange(num_patches, device=index.device)
    permutation = torch.argsort(words[0] * num_patches + patch, dim=1)  # [B, L]
    src = permutation[:, :num_kept]
    flagged = words[1].gather(1, src) < wrong_threshold
    pos = permutation.gather(1, _rank_of_position(flagged, num_patches - num_kept))
    ascending = torch.argsort(src, dim=1)
    src, pos = src.gather(1, ascending), pos.gather(1, ascending)
    return src.int(), pos.int(), pos != src


def _rank_of_position(flagged: Tensor, num_dropped: int) -> Tensor:
    """Where in the permutation each kept token finds its position: int64 [B, K] from flagged [B, K]."""
    num_kept = flagged.shape[1]
    own = torch.arange(num_kept, device=flagged.device).expand_as(flagged)
    ordinal = flagged.cumsum(1) - 1
    by_ordinal = torch.argsort(~flagged, dim=1, stable=True)  # rank of the w-th flagged token
    num_remaining = (flagged.sum(1, keepdim=True) - num_dropped).clamp(min=1)
    shifted = num_dropped + (ordinal - num_dropped + 1) % num_remaining
    exchanged = by_ordinal.gather(1, shifted.clamp(0, num_kept - 1))
    return torch.where(flagged, torch.where(ordinal < num_dropped, num_kept + ordinal, exchanged), own)
