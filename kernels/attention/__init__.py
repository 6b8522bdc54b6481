"""attention: see api.py; reference.py is the specification."""

from .api import SUPPORTED, attention

__all__ = ["SUPPORTED", "attention"]
