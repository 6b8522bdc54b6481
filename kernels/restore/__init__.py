"""restore: see api.py; reference.py is the specification."""

from .api import SUPPORTED, restore
from .dropped import dropped_patches

__all__ = ["SUPPORTED", "dropped_patches", "restore"]
