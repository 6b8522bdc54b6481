"""gelu: see api.py; reference.py is the specification."""

from .api import SUPPORTED, gelu

__all__ = ["SUPPORTED", "gelu"]
