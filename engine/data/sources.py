"""Where images come from: one protocol, and the names by which a user calls each."""

from pathlib import Path
from typing import Protocol

import numpy as np

from misplace.engine.errors import UserError

from .fashion_mnist import DEBIAN_FOLDER, FashionMNIST
from .image_folder import ImageFolder, split_folders
from .shards import Shards, find_shards

SPLITS = ("train", "test")
WITH_BOTH_SPLITS = ("fashion-mnist", "poses", "yoga82", "cub", "coco-keypoints")


class Source(Protocol):
    """Numbered images, with labels where there are any. Cheap to hand to a forked worker."""

    name: str
    image_size: int  # side of a view, pixels, unless the user says otherwise
    patch_size: int  # side of a patch, pixels, unless the user says otherwise
    channels: int  # 1 gray, 3 RGB
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    class_names: tuple[str, ...]  # () where there are no labels

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """An encoded file, or raw uint8 [H, W, C]. Raises OSError."""
        ...

    def path_of(self, index: int) -> str:
        """The name under which a user finds the image."""
        ...

    def label(self, index: int) -> int:
        """The class, -1 where there is none."""
        ...


def open_source(spec: str, *, split: str = "train") -> Source:
    """The source called `spec`: a folder of images, tar shards, or a data set by its name.

    The names: `fashion-mnist[:DIR]`, `poses[:DIR]`, `yoga82:DIR`, `cub:DIR` (CUB-200-2011) and `coco-keypoints:DIR`.
    Tar shards are a folder of them, DIR/{0000..0127}.tar, or one file. split: "train" or "test". A folder with
    train/ and val/ or test/ inside has both; any other is all "train", and asking for its "test" is an error:
    see open_evaluation. Raises UserError in one line.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    kind, _, path = spec.partition(":")
    folder = Path(path).expanduser() if path else None
    if kind == "fashion-mnist":
        return FashionMNIST(split, folder or DEBIAN_FOLDER)
    if kind == "poses":
        from .poses import PosesSource

        return PosesSource(folder, split)
    if kind == "yoga82":
        from .yoga82 import Yoga82

        if folder is None:
            raise UserError("yoga82: give the folder of yoga_train.txt and yoga_test.txt, as yoga82:DIR")
        return Yoga82(folder, split)
    if kind in ("cub", "coco-keypoints"):
        return _open_parts(kind, folder, split)
    root = Path(spec).expanduser()
    folders = split_folders(root)
    if not folders:
        if split == "test":
            raise UserError(f"{root} has no test split: put its images under {root}/train and {root}/val")
        return _open_files(root)
    return _open_files(folders[split], classes=_classes(folders["train"]) if split == "test" else ())


def _open_parts(kind: str, folder: Path | None, split: str) -> Source:
    from .coco_keypoints import CocoKeypoints
    from .cub import Cub

    if folder is None:
        raise UserError(f"{kind}: give the folder that it was unpacked into, as {kind}:DIR")
    return Cub(folder, split) if kind == "cub" else CocoKeypoints(folder, split)


def _open_files(path: Path, classes: tuple[str, ...] = ()) -> Source:
    shards = find_shards(path)
    return Shards(shards, str(path), classes) if shards else ImageFolder(path, classes)


def _classes(folder: Path) -> tuple[str, ...]:
    """Those of the training split."""
    shards = find_shards(folder)
    return Shards(shards).class_names if shards else ImageFolder.classes_in(folder)


def open_evaluation(spec: str) -> tuple[Source, Source | None]:
    """The training and the test split; None where there is no test split.

    Images to test on are then cut from the training split, and must not be in the other part.
    """
    sources = open_splits(spec)
    return sources[0], sources[1] if len(sources) > 1 else None


def open_splits(spec: str) -> tuple[Source, ...]:
    """Every split that a source has, the training one first."""
    is_folder = spec.partition(":")[0] not in WITH_BOTH_SPLITS
    if is_folder and not split_folders(Path(spec).expanduser()):
        return (open_source(spec),)
    return tuple(open_source(spec, split=split) for split in SPLITS)
