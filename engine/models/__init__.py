"""Backbones and heads. State names follow timm's VisionTransformer."""

from .block import Block, run_blocks
from .layers import BatchNorm, LayerNorm, Linear, copied_parameters, use_low_precision
from .sizes import MODEL_SIZES, ModelSize
from .vision_transformer import VisionTransformer

__all__ = [
    "MODEL_SIZES",
    "BatchNorm",
    "Block",
    "LayerNorm",
    "Linear",
    "ModelSize",
    "VisionTransformer",
    "copied_parameters",
    "run_blocks",
    "use_low_precision",
]
