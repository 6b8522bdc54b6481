"""Single samples: opened, decoded, and replaced by another where they cannot be."""

import torch
from PIL import Image

from misplace.engine.errors import UserError

from .batch import Failure
from .decode import DecodeError, decode, open_sample
from .replacement import replacements
from .sources import Source


class Samples:
    """The pictures of a source by number. What cannot be used is a Failure, replaced as `seed` says."""

    def __init__(self, source: Source, seed: int):
        self.source, self.seed = source, seed

    def open(self, sample: int) -> Image.Image | Failure:
        """A picture of known, allowed size, not yet decoded."""
        try:
            return open_sample(self.source, sample)
        except DecodeError as error:
            return self.failure(sample, error)

    def decode(self, sample: int, opened: Image.Image | Failure) -> Image.Image | Failure:
        """The picture as 8-bit gray or RGB; a Failure stays one."""
        if isinstance(opened, Failure):
            return opened
        try:
            return decode(opened, self.source.channels)
        except DecodeError as error:
            return self.failure(sample, error)

    def failure(self, sample: int, error: DecodeError) -> Failure:
        return Failure(sample, self.source.path_of(sample), str(error))

    def replace(self, sample: int, epoch: int, failures: list[Failure]) -> Image.Image:
        """Another sample's picture in place of one that failed; what fails on the way joins `failures`.

        UserError where none of those tried can be decoded.
        """
        for other in replacements(sample, epoch, len(self.source), self.seed):
            image = self.decode(other, self.open(other))
            if not isinstance(image, Failure):
                return image
            failures.append(image)
        last = failures[-1]
        raise UserError(
            f"{self.source.name}: too many images in a row cannot be read, last {last.path} ({last.reason}):"
            " run `misplace data verify`"
        )


def size_of(image: Image.Image | Failure) -> tuple[int, int]:
    """Height and width, pixels. A sample without a picture has none: it is drawn again with its replacement's."""
    return (1, 1) if isinstance(image, Failure) else (image.height, image.width)


def sizes_of(images: list[Image.Image | Failure]) -> torch.Tensor:
    """int64 [B, 2] of size_of."""
    return torch.tensor([size_of(image) for image in images])
