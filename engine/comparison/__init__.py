"""Recipes at equal training time: runs interleaved in slices, their accuracies side by side."""

from .plan import Plan, Variant, make_plan
from .run import compare

__all__ = ["Plan", "Variant", "compare", "make_plan"]
