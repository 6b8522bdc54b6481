"""Frameworks: how views and a teacher make a loss. A framework knows views, tokens and plans, never a pretext."""

from .base import Framework, Student
from .dino import Dino, DinoConfig
from .mae import Mae, MaeConfig
from .moco_v3 import MocoV3, MocoV3Config
from .simclr import Simclr, SimclrConfig

FRAMEWORKS = {MocoV3Config: MocoV3, DinoConfig: Dino, SimclrConfig: Simclr, MaeConfig: Mae}

__all__ = [
    "FRAMEWORKS",
    "Dino",
    "DinoConfig",
    "Framework",
    "Mae",
    "MaeConfig",
    "MocoV3",
    "MocoV3Config",
    "Simclr",
    "SimclrConfig",
    "Student",
]
