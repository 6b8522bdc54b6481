"""add_layer_norm: see api.py; reference.py is the specification."""

from .api import SUPPORTED, add_layer_norm

__all__ = ["SUPPORTED", "add_layer_norm"]
