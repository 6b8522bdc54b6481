"""patch_mse: see api.py; reference.py is the specification."""

from .api import SUPPORTED, patch_mse

__all__ = ["SUPPORTED", "patch_mse"]
