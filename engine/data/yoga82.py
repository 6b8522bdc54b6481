"""YOGA-82 (arXiv 2004.10362): 28,450 photographs of 82 yoga poses, with classes at three levels.

    yoga_train.txt   20,994 lines  folder/name.jpg,label of 6,label of 20,label of 82   [S]
    yoga_test.txt     7,456 lines
    <folder>/<name>.jpg                                                                   [S]

The images are not in the data set but come from links, many of which are dead: what is missing is counted and left out.
"""

import itertools
import logging
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from misplace.engine.errors import UserError

from .image_folder import MAX_FILE_BYTES, PackedNames
from .poses.skeleton import Level

CLASSES = (6, 20, 82)
GROUPS = ("standing", "sitting", "balancing", "inverted", "reclining", "wheel")  # [S] in the order of their labels
IMAGE_FOLDERS = (".", "images", "Images", "yoga_dataset_images")  # [O] the first that holds any of the images
MAX_LIST_BYTES = 1 << 26

log = logging.getLogger("misplace.data")


class Line(NamedTuple):
    """One line of a list."""

    file: str
    labels: tuple[int, int, int]  # of 6, 20 and 82


class Yoga82:
    """One split of YOGA-82, those images that are there. Raises UserError in one line.

    class_names: the 82 folders; hierarchy: the levels of 6, 20 and 82 classes. The files give the 20 no names:
    each is its group and number [O]. missing: the files that the list names and that are not there; how many, and
    the first of them, in a warning of the logger `misplace.data`.
    """

    name = "yoga82"
    channels = 3
    image_size, patch_size = 224, 16
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    def __init__(self, root: Path, split: str):
        self.root = Path(root)
        lists = {name: read_list(self.root / f"yoga_{name}.txt") for name in ("train", "test")}
        self.hierarchy = hierarchy(itertools.chain(*lists.values()), self.root)
        self.class_names = self.hierarchy[-1].class_names
        self._folder = image_folder(self.root, lists["train"])
        there = [os.path.isfile(self._folder / line.file) for line in lists[split]]
        found = [line for line, present in zip(lists[split], there) if present]
        self.missing = tuple(line.file for line, present in zip(lists[split], there) if not present)
        if not found:
            raise UserError(
                f"{self.root}: none of the {len(there)} images of yoga_{split}.txt is there, such as "
                f"{self.missing[0]}: download them from the links first"
            )
        if self.missing:
            names = ", ".join(self.missing[:3]) + (", ..." if len(self.missing) > 3 else "")
            log.warning("yoga82: %d of %d %s images are missing: %s", len(self.missing), len(there), split, names)
        self._names = PackedNames(line.file for line in found)
        self._labels = np.array([line.labels[-1] for line in found], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The encoded file. Raises OSError."""
        with open(self._folder / self._names[index], "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise OSError(0, f"larger than {MAX_FILE_BYTES >> 20} MiB")
            return file.read()

    def path_of(self, index: int) -> str:
        return str(self._folder / self._names[index])

    def label(self, index: int) -> int:
        """The class of 82."""
        return int(self._labels[index])


def read_list(path: Path) -> list[Line]:
    """Every line of yoga_train.txt or yoga_test.txt. Raises UserError, for a bad line with its number."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of yoga_train.txt and yoga_test.txt") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text") from None
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{path}: larger than {MAX_LIST_BYTES >> 20} MiB; not a list of YOGA-82")
    lines = [read_line(line, f"{path}:{n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty")
    return lines


def read_line(line: str, where: str) -> Line:
    """folder/name.jpg,6,20,82. where: file and line, for the UserError."""
    fields = [field.strip() for field in line.rsplit(",", 3)]
    if len(fields) != 4 or not all(map(is_label, fields[1:])):
        raise UserError(f"{where}: {shown(line)} is not `folder/image,label,label,label`")
    file, labels = fields[0], tuple(map(int, fields[1:]))
    for label, classes in zip(labels, CLASSES):
        if label >= classes:
            raise UserError(f"{where}: label {label} is not in 0 to {classes - 1}")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or "\\" in file or not file.isprintable():
        raise UserError(f"{where}: {shown(file)} is no path of an image in a folder below this one")
    return Line(file, labels)


def is_label(field: str) -> bool:
    return field.isascii() and field.isdigit() and len(field) < 10


def shown(text: str) -> str:
    """At most 80 characters, and none that a terminal acts on."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def hierarchy(lines: itertools.chain, root: Path) -> tuple[Level, ...]:
    """The three levels, over all 82 classes. UserError where a class is in two classes of the level above.

    A class that no line names is `pose n`, and of the first classes above.
    """
    names, middle, group = {}, {}, {}
    for line in lines:
        six, twenty, pose = line.labels
        if middle.setdefault(pose, twenty) != twenty or group.setdefault(twenty, six) != six:
            raise UserError(f"{root}: {shown(line.file)} gives {six},{twenty},{pose}, another line another hierarchy")
        names.setdefault(pose, PurePosixPath(line.file).parts[0].strip("_ "))
    poses = range(CLASSES[2])
    of_twenty = tuple(middle.get(pose, 0) for pose in poses)
    twenty_names = tuple(f"{GROUPS[group.get(n, 0)]} {n}" for n in range(CLASSES[1]))
    return (
        Level("group", GROUPS, tuple(group.get(n, 0) for n in of_twenty)),
        Level("variation", twenty_names, of_twenty),
        Level("pose", tuple(names.get(pose, f"pose {pose}") for pose in poses), tuple(poses)),
    )


def image_folder(root: Path, lines: list[Line]) -> Path:
    """Where the folders of the poses lie."""
    tops = {PurePosixPath(line.file).parts[0] for line in lines}
    for name in IMAGE_FOLDERS:
        if any((root / name / top).is_dir() for top in tops):
            return root / name
    return root
