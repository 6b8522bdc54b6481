"""Evaluation of a frozen encoder: features, k-nearest-neighbour classification."""

from .features import (
    NUM_TEST,
    NUM_TRAIN,
    choose_images,
    extract,
    pixels,
)
from .knn import KS, TEMPERATURE, knn, usable_ks
from .task import KnnTask, patch_mean

__all__ = [
    "KS",
    "NUM_TEST",
    "NUM_TRAIN",
    "TEMPERATURE",
    "KnnTask",
    "choose_images",
    "extract",
    "knn",
    "patch_mean",
    "pixels",
    "usable_ks",
]
