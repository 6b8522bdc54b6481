"""The best one-to-one assignment of a few things to as many places, exactly."""

import torch
from torch import Tensor

MAX_PLACES = 9


def best_assignment(scores: Tensor) -> Tensor:
    """The permutation of largest total score. scores: [B, n, n], n <= 9. Returns int64 [B, n]: the place of each.

    Dynamic programming over the sets of places taken, 2^n steps for all B at once: no permutation is left out.
    Of equal totals, the one that gives the last thing the lowest place, then the last but one, and so on.
    """
    batch, count, places = scores.shape
    if count != places or count > MAX_PLACES:
        raise ValueError(f"scores must be [B, n, n] with n <= {MAX_PLACES}, not {tuple(scores.shape)}")
    scores = scores.double()
    totals = scores.new_zeros(1 << count, batch)
    last = torch.zeros(1 << count, batch, dtype=torch.int64, device=scores.device)
    for taken in range(1, 1 << count):
        thing = taken.bit_count() - 1
        open_places = [place for place in range(count) if taken >> place & 1]
        candidates = torch.stack([totals[taken ^ 1 << place] + scores[:, thing, place] for place in open_places])
        best = candidates.argmax(0)
        totals[taken] = candidates.gather(0, best[None])[0]
        last[taken] = torch.tensor(open_places, device=scores.device)[best]
    assigned = last.new_zeros(batch, count)
    taken = torch.full((batch,), (1 << count) - 1, device=scores.device)
    for thing in reversed(range(count)):
        place = last[taken, torch.arange(batch, device=scores.device)]
        assigned[:, thing] = place
        taken = taken - (1 << place)
    return assigned
