"""Checkpoints: whole or not there at all, every byte under a digest, plain types only."""

from .errors import CheckpointError
from .rotation import Checkpoint, latest, load, save

__all__ = ["Checkpoint", "CheckpointError", "latest", "load", "save"]
