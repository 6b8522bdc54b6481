"""Frameworks: how views and a teacher make a loss. A framework knows views and class tokens, never a pretext."""

from .base import Framework
from .moco_v3 import MocoV3, MocoV3Config

FRAMEWORKS = {MocoV3Config: MocoV3}

__all__ = ["FRAMEWORKS", "Framework", "MocoV3", "MocoV3Config"]
