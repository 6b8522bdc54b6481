"""Features of images that need no labels, each image read once for all encoders."""

from collections.abc import Sequence

import torch
from torch import Tensor

from misplace.engine.errors import UserError

from .study import Split, Study, feature
from .subjects import Subject


@torch.no_grad()
def embed(study: Study, subjects: Sequence[Subject], split: Split, kind: str) -> tuple[list[Tensor], Tensor]:
    """Features fp32 [n, D] of each of `subjects`, all of one image size, and the images' numbers int64 [n].

    kind: as for Study.features. Raises UserError where no image can be decoded.
    """
    made: list[list[Tensor]] = [[] for _ in subjects]
    numbers = []
    name = f"{subjects[0].name if len(subjects) == 1 else 'all encoders'}, {split.source.name}"
    for images, kept in study.tracked_batches(split, subjects[0].image_size, name):
        for subject, parts in zip(subjects, made):
            parts.append(feature(subject, images.to(study.device), kind))
        numbers.append(kept)
    if not numbers:
        raise UserError(f"{split.source.name}: none of the {len(split.indices)} images chosen can be decoded")
    return [torch.cat(parts) for parts in made], torch.cat(numbers)
