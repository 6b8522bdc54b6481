"""Fashion-MNIST from its four idx files, as Debian ships them."""

from pathlib import Path

import numpy as np

from misplace.engine.errors import UserError

from .idx import read_idx

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PREFIX = {"train": "train", "test": "t10k"}


class FashionMNIST:
    """60,000 training and 10,000 test images, 28 x 28 gray, 10 classes. Raises UserError in one line.

    A missing file's error names the Debian package. Held in memory, 47 MB, shared by forked workers.
    """

    channels = 1
    image_size, patch_size = 28, 4
    mean, std = (0.2860,), (0.3530,)  # of the training images
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def __init__(self, split: str, folder: Path = DEBIAN_FOLDER):
        self.name = "fashion-mnist"
        file = _find(folder, f"{PREFIX[split]}-images-idx3-ubyte")
        self._images = read_idx(file)
        self._labels = read_idx(_find(folder, f"{PREFIX[split]}-labels-idx1-ubyte"))
        self._path = str(file)
        if self._images.shape[1:] != (28, 28) or self._labels.shape != self._images.shape[:1]:
            raise UserError(f"{file}: images {self._images.shape} with labels {self._labels.shape}: not n x 28 x 28, n")
        if not len(self._labels) or self._labels.max() >= len(self.class_names):
            raise UserError(f"{file}: the labels beside it are not 0 to {len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> np.ndarray:
        """Raw uint8 [28, 28, 1]."""
        return self._images[index, :, :, None]

    def path_of(self, index: int) -> str:
        """The idx file and the number of the image in it."""
        return f"{self._path}[{index}]"

    def label(self, index: int) -> int:
        """The class, 0 to 9."""
        return int(self._labels[index])


def _find(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise UserError(
        f"fashion-mnist: no {name}.gz in {folder}: apt install dataset-fashion-mnist, or give fashion-mnist:FOLDER"
    )
