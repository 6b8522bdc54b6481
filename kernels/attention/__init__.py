"""attention: see api.py; reference.py is the specification."""

from .api import attention
from .choice import SUPPORTED, attention_choice

__all__ = ["SUPPORTED", "attention", "attention_choice"]
