"""prototype_ce: see api.py; reference.py is the specification."""

from .api import SUPPORTED, prototype_ce

__all__ = ["SUPPORTED", "prototype_ce"]
