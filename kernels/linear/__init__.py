"""linear: see api.py; reference.py is the specification."""

from .api import SUPPORTED, linear, pack_weight

__all__ = ["SUPPORTED", "linear", "pack_weight"]
