"""info_nce: see api.py; reference.py is the specification."""

from .api import SUPPORTED, info_nce, nt_xent

__all__ = ["SUPPORTED", "info_nce", "nt_xent"]
