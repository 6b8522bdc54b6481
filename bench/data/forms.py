"""The forms that are measured: every side makes these views."""

from misplace.engine.data import AugmentConfig
from misplace.engine.data.augmentation import ViewKind

FORMS = {"two-views": AugmentConfig(), "multi-crop": AugmentConfig(crop_scale=(0.25, 1.0), local_views=8)}
NUM_VIEWS, IMAGE_SIZE = 2, 224


def kinds(form: str) -> tuple[ViewKind, ...]:
    """Size, crop and probabilities of each view."""
    return FORMS[form].view_kinds(NUM_VIEWS, IMAGE_SIZE)
