"""The pipeline on NVIDIA DALI: our samples and our parameters in, decoded and augmented views out."""

from .availability import why_unavailable
from .inputs import StepInputsOf
from .loader import DaliLoader

__all__ = ["DaliLoader", "StepInputsOf", "why_unavailable"]
