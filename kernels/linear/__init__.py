"""linear: see api.py; reference.py is the specification."""

from .api import SUPPORTED, linear, linear_packed, pack_weight

__all__ = ["SUPPORTED", "linear", "linear_packed", "pack_weight"]
