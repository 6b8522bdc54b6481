"""The images to read: JPEGs of 500 x 375 pixels, as ImageNet's are on average."""

import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from misplace.engine.data import open_source
from misplace.engine.data.image_folder import ImageFolder
from misplace.engine.data.poses import VERSION, default_root, render_image
from misplace.engine.errors import UserError

NAMES = ("poses", "photographs")
WIDTH, HEIGHT = 500, 375
POSES, FEW, COPIES = 256, 8, 8
POSES_QUALITY, PHOTOGRAPH_QUALITY = 90, 95


def make(name: str, folder: Path, *, few: bool = False) -> Path:
    """The folder of the images called `name`: "poses", kept beside the set of that name, "photographs", or one's own.

    folder: for what is not kept. few: enough for a rehearsal.
    """
    if name == "poses":
        return poses(folder / name, FEW) if few else kept_poses()
    if name == "photographs":
        return photographs(folder / name)
    if not Path(name).is_dir():
        raise UserError(f"bench: --images {name}: poses, photographs or a folder")
    return Path(name)


def files_of(folder: Path) -> list[str]:
    """What ours reads of a folder, for a peer."""
    source = open_source(str(folder))
    if not isinstance(source, ImageFolder):
        raise UserError(f"bench: --images {folder}: no image folder, and the peers read nothing else")
    return [source.path_of(i) for i in range(len(source))]


def kept_poses() -> Path:
    """The rendered pictures; made once, and there completely or not at all."""
    root = default_root().parent / f"poses-v{VERSION}-seed0-{WIDTH}x{HEIGHT}-{POSES}"
    if root.is_dir():
        return root
    print(f"rendering poses: {POSES} pictures of {WIDTH} x {HEIGHT} into {root} (once)", file=sys.stderr, flush=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        made = poses(Path(scratch) / "made", POSES)
        try:
            os.rename(made, root)
        except OSError:  # another process was first
            if not root.is_dir():
                raise
    return root


def poses(folder: Path, count: int) -> Path:
    """Rendered pictures, the middle rows of squares."""
    folder.mkdir(parents=True, exist_ok=True)
    top = (WIDTH - HEIGHT) // 2
    console = Console(stderr=True)
    for i in track(range(count), "rendering poses", console=console, transient=True, disable=not console.is_terminal):
        image = Image.fromarray(np.asarray(render_image(i, size=WIDTH).image)[top : top + HEIGHT])
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
