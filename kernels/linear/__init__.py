"""linear: see api.py; reference.py is the specification."""

from .api import SUPPORTED, linear

__all__ = ["SUPPORTED", "linear"]
