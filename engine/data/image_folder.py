"""A folder of images, laid out as torchvision's ImageFolder or flat."""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from misplace.engine.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_FILE_BYTES = 1 << 29


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits "train" and "test" (val/ before test/), or {} where there are not both."""
    tests = [root / name for name in ("val", "test") if (root / name).is_dir()]
    return {"train": root / "train", "test": tests[0]} if tests and (root / "train").is_dir() else {}


class ImageFolder:
    """Images found by their extension, in the order of their names.

    Subfolders are classes, by name, and hold images at any depth; files beside them are then not read [S,
    torchvision]. Where no subfolder has images, those in the folder itself are read, unlabelled; a single
    class is no label either [O]. Links to folders are followed unless they lead back to a folder they are in.
    Nothing hidden (.name) is read. Raises UserError in one line.

    classes: the class names of the training split, of which these must be some; () takes this folder's own.
    """

    channels = 3
    image_size, patch_size = 224, 16
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's [S]

    def __init__(self, root: Path, classes: tuple[str, ...] = ()):
        self.root, self.name = Path(root), str(root)
        names = self.classes_in(self.root)
        found = [list(_images(self.root / name, f"{name}/")) for name in names]
        if not any(found):
            names, found = (), [list(_images(self.root))]
        self._names = PackedNames(itertools.chain.from_iterable(found))
        if not len(self._names):
            raise UserError(f"{self.root} {self._what_it_holds()}")
        self.class_names = classes or (names if len(names) > 1 else ())
        if self.class_names:
            numbers = [self._number(name) for name in names]
            self._labels = np.repeat(np.array(numbers, dtype=np.int32), [len(files) for files in found])

    def _what_it_holds(self) -> str:
        others = ", ".join(sorted(os.listdir(self.root))[:3])
        return f"holds no images ({' '.join(EXTENSIONS)}) but {others}" if others else "is empty"

    @staticmethod
    def classes_in(root: Path) -> tuple[str, ...]:
        """The names of the subfolders, sorted. UserError where root is not a folder that can be read."""
        if not root.exists():
            raise UserError(f"{root} does not exist: give an image folder, tar shards, fashion-mnist or poses")
        if not root.is_dir():
            raise UserError(f"{root} is a file: give the folder of the images")
        return tuple(entry.name for entry in _entries(root) if os.path.isdir(entry.path))

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The encoded file. Raises OSError."""
        return read_picture(self.root / self._names[index])

    def path_of(self, index: int) -> str:
        """The file's path; bytes that are not UTF-8 are shown as �."""
        return os.fsencode(self.root / self._names[index]).decode("utf-8", "replace")

    def label(self, index: int) -> int:
        """The class, -1 in an unlabelled folder."""
        return int(self._labels[index]) if self.class_names else -1

    def _number(self, name: str) -> int:
        if name not in self.class_names:
            raise UserError(f"{self.root / name} is a class that the training split does not have")
        return self.class_names.index(name)


def read_picture(path: Path) -> bytes:
    """The encoded file. Raises OSError, also above MAX_FILE_BYTES."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise OSError(0, f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return file.read()


class PackedNames:
    """Many file names in two flat buffers: a list of str would be copied into every forked worker."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])


def _entries(folder: Path) -> list[os.DirEntry]:
    """What is in a folder and not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _images(folder: Path, prefix: str = "", above: frozenset = frozenset()) -> Iterator[str]:
    """Names of the images in a folder and below it. above: (device, inode) of the folders it is in."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in _entries(folder):
        if entry.name.lower().endswith(EXTENSIONS):
            if os.path.isfile(entry.path):
                yield prefix + entry.name
        elif os.path.isdir(entry.path):
            yield from _images(Path(entry.path), f"{prefix}{entry.name}/", above | {identity})
