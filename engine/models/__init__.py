"""Backbones and heads. State names follow timm's VisionTransformer."""

from .layers import BatchNorm, LayerNorm, Linear, copied_parameters, use_low_precision
from .sizes import MODEL_SIZES, ModelSize
from .vision_transformer import VisionTransformer

__all__ = [
    "MODEL_SIZES",
    "BatchNorm",
    "LayerNorm",
    "Linear",
    "ModelSize",
    "VisionTransformer",
    "copied_parameters",
    "use_low_precision",
]
