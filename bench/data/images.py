"""The images to read: JPEGs of 500 x 375 pixels, as ImageNet's are on average."""

import importlib.metadata
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from misplace.engine.data.poses import render_images
from misplace.engine.errors import UserError

WIDTH, HEIGHT = 500, 375
POSES, FEW, COPIES = 256, 8, 8
POSES_QUALITY, PHOTOGRAPH_QUALITY = 90, 95


def make(name: str, folder: Path, *, few: bool = False) -> Path:
    """The folder of the images called `name`: "poses" or "photographs", written below `folder`, or one's own.

    few: enough for a rehearsal.
    """
    if name == "poses":
        return poses(folder / name, FEW if few else POSES)
    if name == "photographs":
        return photographs(folder / name)
    if not Path(name).is_dir():
        raise UserError(f"bench: --images {name}: poses, photographs or a folder")
    return Path(name)


def poses(folder: Path, count: int) -> Path:
    """Rendered pictures, the middle rows of squares."""
    folder.mkdir(parents=True, exist_ok=True)
    top = (WIDTH - HEIGHT) // 2
    for i, picture in enumerate(render_images(range(count), seed=0, split="train", size=WIDTH)):
        image = Image.fromarray(np.asarray(picture.image)[top : top + HEIGHT])
        image.save(folder / f"{i:04}.jpg", quality=POSES_QUALITY)
    return folder


def photographs(folder: Path) -> Path:
    """The ImageNet photographs that the package foolbox carries, each as several files."""
    try:
        files = importlib.metadata.files("foolbox") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("bench: --images photographs are foolbox's: pip install --no-deps foolbox") from None
    found = sorted(str(f.locate()) for f in files if f.suffix.lower() in (".jpg", ".jpeg") and "imagenet" in f.name)
    if not found:
        raise UserError("bench: this version of foolbox carries no ImageNet photographs")
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(found):
        with Image.open(file) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        for copy in range(COPIES):
            fitted.save(folder / f"{i:03}-{copy}.jpg", quality=PHOTOGRAPH_QUALITY)
    return folder
