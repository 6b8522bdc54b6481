"""Evaluation of a frozen encoder: features, k nearest neighbours, and the protocols built on them."""

from .features import NUM_TEST, NUM_TRAIN, choose_images, extract, pixels
from .knn import KS, TEMPERATURE, knn, knn_predictions, usable_ks
from .scores import Score, bootstrap_means, interval, score
from .study import Labelled, Split, Study, open_study_splits
from .subjects import PIXELS, RANDOM, TRAINED, Subject, encoder_subject, initial_encoder, pixel_subject, subjects_of
from .task import KnnTask, patch_mean

__all__ = [
    "KS",
    "NUM_TEST",
    "NUM_TRAIN",
    "PIXELS",
    "RANDOM",
    "TEMPERATURE",
    "TRAINED",
    "KnnTask",
    "Labelled",
    "Score",
    "Split",
    "Study",
    "Subject",
    "bootstrap_means",
    "choose_images",
    "encoder_subject",
    "extract",
    "initial_encoder",
    "interval",
    "knn",
    "knn_predictions",
    "open_study_splits",
    "patch_mean",
    "pixel_subject",
    "pixels",
    "score",
    "subjects_of",
    "usable_ks",
]
