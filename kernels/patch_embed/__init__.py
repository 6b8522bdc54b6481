"""patch_embed: see api.py; reference.py is the specification."""

from .api import SUPPORTED, patch_embed

__all__ = ["SUPPORTED", "patch_embed"]
