"""The input pipeline people write: a DataLoader of PIL pictures and torchvision's transforms, to normalised tensors."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset

from misplace.engine.data.augmentation import ViewKind

from ..data.forms import kinds
from ..data.images import files_of
from .torchvision_import import import_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictures(Dataset):
    """Every picture of a folder as its views, round and round."""

    def __init__(self, files: list[str], views: list):
        self.files, self.views = files, views

    def __len__(self) -> int:
        return len(self.files) << 20

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        with Image.open(self.files[index % len(self.files)]) as image:
            picture = image.convert("RGB")
        return [view(picture) for view in self.views]


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def transform(kind: ViewKind, *, cubic: bool):
    """One view of MoCo v3 (BYOL) or DINO [S]."""
    import_torchvision()
    from torchvision import transforms as T

    interpolation = T.InterpolationMode.BICUBIC if cubic else T.InterpolationMode.BILINEAR
    return T.Compose(
        [
            T.RandomResizedCrop(kind.size, scale=kind.crop_scale, interpolation=interpolation),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([T.Lambda(_blur)], p=kind.blur_p),
            T.RandomApply([T.Lambda(ImageOps.solarize)], p=kind.solarize_p),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def views_of(form: str, *, cubic: bool = True) -> list:
    """A transform for each view."""
    return [transform(kind, cubic=cubic) for kind in kinds(form)]


def check() -> None:
    """UserError where torchvision is missing."""
    import_torchvision()


@contextmanager
def loader(folder: Path, form: str, batch_size: int, workers: int, *, cubic: bool = True) -> Iterator[Iterator[int]]:
    """Yields how many images each batch has. cubic: the resize, as ours and DINO's; else bilinear, as MoCo v3's."""
    data = DataLoader(
        Pictures(files_of(folder), views_of(form, cubic=cubic)),
        batch_size=batch_size,
        shuffle=False,  # as many reads as shuffled, and no permutation of millions to draw first
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    batches = iter(data)
    try:
        yield (len(views[0]) for views in batches)
    finally:
        if workers:
            batches._shutdown_workers()
