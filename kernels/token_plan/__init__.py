"""Which patches are kept, which position each is given, and which of them are wrong."""

from .api import MAX_PATCHES, TokenPlan, dense_plan, num_kept, token_plan

__all__ = ["MAX_PATCHES", "TokenPlan", "dense_plan", "num_kept", "token_plan"]
