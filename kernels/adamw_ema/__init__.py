"""adamw_ema: see api.py; reference.py is the specification."""

from .api import SUPPORTED, adamw_ema

__all__ = ["SUPPORTED", "adamw_ema"]
