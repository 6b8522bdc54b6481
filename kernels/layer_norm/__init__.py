"""layer_norm: see api.py; reference.py is the specification."""

from .api import SUPPORTED, layer_norm

__all__ = ["SUPPORTED", "layer_norm"]
