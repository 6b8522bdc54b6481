"""Schedules over the progress of a run, in [0, 1]: of its steps, or of its wall-clock budget."""

import math


def half_cosine(progress: float, start: float, end: float) -> float:
    """From `start` at 0 to `end` at 1 by half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine_with_warmup(progress: float, *, peak: float, warmup: float, final: float = 0.0) -> float:
    """Linear from 0 to `peak` over the share `warmup`, then half a cosine down to `final`. [S] (MoCo v3)"""
    if progress < warmup:
        return peak * progress / warmup
    share = (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return half_cosine(min(share, 1.0), peak, final)
