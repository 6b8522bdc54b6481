"""Evaluation of a frozen encoder: features, k-nearest-neighbour classification."""

from .features import (
    NUM_TEST,
    NUM_TRAIN,
    choose_images,
    extract,
    pixels,
)
from .knn import KS, TEMPERATURE, knn, usable_ks

__all__ = [
    "KS",
    "NUM_TEST",
    "NUM_TRAIN",
    "TEMPERATURE",
    "choose_images",
    "extract",
    "knn",
    "pixels",
    "usable_ks",
]
