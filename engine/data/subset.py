"""Some images of a source as a source of their own."""

import numpy as np
from torch import Tensor

from .sources import Source


class Subset:
    """Image i is image indices[i] of `source`; a number may stand there more than once."""

    def __init__(self, source: Source, indices: Tensor):  # int64 [n]
        self.source, self.indices = source, indices.tolist()
        self.name, self.class_names = source.name, source.class_names
        self.image_size, self.patch_size = source.image_size, source.patch_size
        self.channels, self.mean, self.std = source.channels, source.mean, source.std

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | np.ndarray:
        """As the source's. Raises OSError."""
        return self.source.read(self.indices[index])

    def path_of(self, index: int) -> str:
        """The source's name of the image."""
        return self.source.path_of(self.indices[index])

    def label(self, index: int) -> int:
        """The class, -1 where there is none."""
        return self.source.label(self.indices[index])
