"""`poses` as a data source; rendered on first use."""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from misplace.engine.errors import UserError

from ..parts import Part
from .annotation import VERSION, Annotation, from_line, read_manifest
from .dataset import SIZE, TEST, TRAIN, render_dataset
from .dice import SPLITS
from .parts import CLASS_OF_VALUE, PART_CLASSES, parts_in, read_mask
from .skeleton import HIERARCHY, PART_KINDS, PART_NAMES, Level


def default_root() -> Path:
    """Where the default set lives: below $MISPLACE_DATA, or else below ~/.cache/misplace."""
    base = os.environ.get("MISPLACE_DATA") or Path.home() / ".cache" / "misplace"
    return Path(base).expanduser() / f"poses-v{VERSION}-seed0-{SIZE}px-{TRAIN}+{TEST}"


class PosesSource:
    """One split of a rendered set, as encoded pictures with labels, masks and part centres."""

    name = "poses"
    image_size = 96  # trained at; the stored pictures are a little larger, as crops want
    patch_size = 16
    channels = 3
    # Near the measured (0.55, 0.61, 0.54) and (0.31, 0.19, 0.32), but one for all channels: a gray stays gray [O].
    mean = (0.5, 0.5, 0.5)
    std = (0.21, 0.21, 0.21)
    part_names: tuple[str, ...] = PART_NAMES
    part_kinds: tuple[str, ...] = PART_KINDS
    hierarchy: tuple[Level, ...] = HIERARCHY
    part_classes: tuple[str, ...] = PART_CLASSES  # the kinds, each once
    has_masks = True

    def __init__(self, root: str | Path | None = None, split: str = "train") -> None:
        """root: a folder written by render_dataset; None: the default set, rendered now if need be.

        Raises UserError where there is no such set or split.
        """
        if split not in SPLITS:
            raise UserError(f"poses: no split {split!r}; it has {' and '.join(SPLITS)}")
        self.root = _default_set() if root is None else Path(root).expanduser()
        manifest = read_manifest(self.root)
        if manifest is None or manifest["version"] != VERSION:
            raise UserError(f"poses: no poses v{VERSION} in {self.root}; render it with `misplace data render`")
        self.split = split
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        with open(self.root / "annotations" / f"{split}.jsonl") as lines:
            self._annotations = tuple(map(from_line, lines))

    def __len__(self) -> int:
        return len(self._annotations)

    def read(self, i: int) -> bytes:
        """The JPEG of picture i."""
        return (self.root / self._annotations[i].file).read_bytes()

    def path_of(self, i: int) -> str:
        return str(self.root / self._annotations[i].file)

    def label(self, i: int) -> int:
        return self._annotations[i].class_id

    def annotation(self, i: int) -> Annotation:
        return self._annotations[i]

    def mask(self, i: int) -> np.ndarray:
        """uint8 [H, W] at the stored size: 0 background, 1 + i for part i of part_names."""
        return np.array(Image.open(self.root / self._annotations[i].mask))

    def parts(self, i: int) -> tuple[Part, ...]:
        """One for each of part_names, in their order, with the class of its kind."""
        annotation = self._annotations[i]
        return parts_in(read_mask(self.root / annotation.mask), annotation.visibility)

    def part_mask(self, i: int) -> np.ndarray:
        """uint8 [H, W] at the stored size: 0 background, 1 + class of part_classes."""
        return CLASS_OF_VALUE[read_mask(self.root / self._annotations[i].mask)]


def _default_set() -> Path:
    root = default_root()
    if not root.exists():
        line = f"rendering poses: {TRAIN + TEST:,} pictures of {SIZE} px into {root} (once)"
        print(line, file=sys.stderr, flush=True)
    return render_dataset(root, train=TRAIN, test=TEST, size=SIZE)
