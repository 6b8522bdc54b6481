"""Optimiser and schedules."""

from .adamw_ema import AdamWEMA, OptimConfig
from .schedules import cosine_with_warmup

__all__ = ["AdamWEMA", "OptimConfig", "cosine_with_warmup"]
