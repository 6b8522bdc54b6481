"""Backbone sizes by name."""

from typing import NamedTuple


class ModelSize(NamedTuple):
    """width: channels of a token; depth: blocks; num_heads: attention heads."""

    width: int
    depth: int
    num_heads: int


MODEL_SIZES = {
    "nano": ModelSize(192, 6, 3),
    "tiny": ModelSize(192, 12, 3),
    "small": ModelSize(384, 12, 6),
    "base": ModelSize(768, 12, 12),
    "large": ModelSize(1024, 24, 16),
}
