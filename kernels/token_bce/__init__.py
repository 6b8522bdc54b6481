"""token_bce: see api.py; reference.py is the specification."""

from .api import SUPPORTED, token_bce

__all__ = ["SUPPORTED", "token_bce"]
