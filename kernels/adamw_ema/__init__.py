"""adamw_ema: see api.py; reference.py is the specification."""

from .api import SUPPORTED, adamw_ema, update
from .tensors import AdamWTensors

__all__ = ["SUPPORTED", "AdamWTensors", "adamw_ema", "update"]
