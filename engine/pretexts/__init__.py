"""Pretexts: a token plan, a head and a loss. A pretext knows plans and tokens, never a framework."""

from .base import Detection, NoPretext, NoPretextConfig, Pretext
from .dilemma import Dilemma, DilemmaConfig

PRETEXTS = {NoPretextConfig: NoPretext, DilemmaConfig: Dilemma}

__all__ = [
    "PRETEXTS",
    "Detection",
    "Dilemma",
    "DilemmaConfig",
    "NoPretext",
    "NoPretextConfig",
    "Pretext",
]
