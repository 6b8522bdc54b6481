"""The input pipeline people write: a DataLoader of PIL pictures and torchvision's transforms, to normalised tensors."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import DataLoader, Dataset

from .torchvision_import import import_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictures(Dataset):
    """Every picture of a folder as its views, round and round."""

    def __init__(self, files: list[Path], views: list):
        self.files, self.views = files, views

    def __len__(self) -> int:
        return len(self.files) << 20

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        with Image.open(self.files[index % len(self.files)]) as image:
            picture = image.convert("RGB")
        return [view(picture) for view in self.views]


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def transform(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float):
    """One view of MoCo v3 (BYOL) [S]."""
    import_torchvision()
    from torchvision import transforms as T

    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([T.Lambda(_blur)], p=blur_p),
            T.RandomApply([T.Lambda(ImageOps.solarize)], p=solarize_p),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def views_of(form: str) -> list:
    """MoCo v3's two views, or DINO's two and eight."""
    if form == "two-views":
        return [transform(224, (0.08, 1.0), 1.0, 0.0), transform(224, (0.08, 1.0), 0.1, 0.2)]
    large = [transform(224, (0.25, 1.0), 1.0, 0.0), transform(224, (0.25, 1.0), 0.1, 0.2)]
    return large + [transform(96, (0.05, 0.25), 0.5, 0.0)] * 8


@contextmanager
def loader(folder: Path, form: str, batch_size: int, workers: int) -> Iterator[Iterator[int]]:
    """Yields how many images each batch has."""
    data = DataLoader(
        Pictures(sorted(folder.rglob("*.jpg")), views_of(form)),
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
