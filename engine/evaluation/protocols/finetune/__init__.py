"""Full fine-tuning of the encoder as in MAE (arXiv 2111.06377), and with few labels."""

from .options import Options
from .protocol import resolve, run

__all__ = ["Options", "resolve", "run"]
