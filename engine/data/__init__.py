"""From image files to batches of views: sources, sample order, augmentation, the Pillow pipeline."""

from .augmentation import AugmentConfig, ViewParameters, draw_view_parameters
from .batch import Batch, Failure
from .evaluation import centre_mask, load_eval
from .order import BatchOrder, SampleOrder
from .parts import Part, PartImages
from .pillow import PillowPipeline, render_view
from .pipelines import Loader, choose_pipeline, describe, make_loader
from .quarantine import Quarantine
from .sources import Source, open_evaluation, open_source
from .verify import Verification, verify

__all__ = [
    "AugmentConfig",
    "Batch",
    "BatchOrder",
    "Failure",
    "Loader",
    "Part",
    "PartImages",
    "PillowPipeline",
    "Quarantine",
    "SampleOrder",
    "Source",
    "Verification",
    "ViewParameters",
    "centre_mask",
    "choose_pipeline",
    "describe",
    "draw_view_parameters",
    "load_eval",
    "make_loader",
    "open_evaluation",
    "open_source",
    "render_view",
    "verify",
]
