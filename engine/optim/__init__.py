"""Optimiser and schedules."""

from .adamw_ema import AdamWEMA, OptimConfig, StepNumbers
from .schedules import cosine_with_warmup, half_cosine

__all__ = ["AdamWEMA", "OptimConfig", "StepNumbers", "cosine_with_warmup", "half_cosine"]
