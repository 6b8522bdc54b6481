"""The Pillow pipeline: the readable reference that a faster one is held against."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from misplace.engine.errors import UserError

from . import image_ops
from .augmentation import NO_SOLARIZE, AugmentConfig, ViewParameters, draw_view_parameters
from .batch import Batch, Failure
from .decode import DecodeError, decode, open_sample
from .order import BatchOrder
from .replacement import replacements
from .sources import Source


def render_view(image: Image.Image, parameters: ViewParameters, size: int) -> np.ndarray:
    """One view, uint8 [size, size, C], of a decoded picture. parameters: one of ViewParameters.rows().

    [S] crop, jitter, grayscale, blur, solarise, flip, in MoCo v3's order; those of probability p are drawn
    already.
    """
    p = parameters
    view = image_ops.crop_resize(image, p.box, size)
    view = image_ops.jitter(view, p.brightness, p.contrast, p.saturation, p.hue, p.grayscale)
    if p.blur_sigma > 0:
        view = image_ops.gaussian_blur(view, p.blur_sigma)
    if p.solarize < NO_SOLARIZE:
        view = image_ops.solarize(view, p.solarize)
    return image_ops.flip(view) if p.flip else view


class PillowPipeline:
    """`pipeline[step]` is the Batch of a step: a pure function of the source, the settings and the step.

    Raises UserError at the start for settings that cannot be, and from a step whose samples and all their
    replacements cannot be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        num_views: int,
        image_size: int,
        augment: AugmentConfig,
        seed: int,
    ):
        augment.check_views(num_views)
        self.source, self.num_views, self.image_size = source, num_views, image_size
        self.augment, self.seed = augment, seed
        self.order = BatchOrder(len(source), batch_size, seed)

    def __getitem__(self, step: int) -> Batch:
        epoch, index = self.order.locate(step)
        opened = [self._open(i) for i in index.tolist()]
        # A sample that cannot be opened has no size; its row is drawn again with its replacement's.
        sizes = torch.tensor([(1, 1) if isinstance(o, Failure) else (o.height, o.width) for o in opened])
        parameters = self._draw(index, sizes, epoch)
        shape = (len(opened), self.image_size, self.image_size, self.source.channels)
        views = tuple(torch.empty(shape, dtype=torch.uint8) for _ in range(self.num_views))
        buffers = [view.numpy() for view in views]
        failures: list[Failure] = []
        for row, sample in enumerate(index.tolist()):
            image = self._decode(sample, opened[row])
            opened[row] = None  # decoded pixels live for one row only
            of_row = parameters[row]
            if isinstance(image, Failure):
                failures.append(image)
                image = self._replace(sample, epoch, failures)
                size = torch.tensor([(image.height, image.width)])
                of_row = self._draw(index[row : row + 1], size, epoch)[0]
            for buffer, of_view in zip(buffers, of_row):
                buffer[row] = render_view(image, of_view, self.image_size)
        return Batch(views, index, epoch, tuple(failures))

    def _draw(self, index: Tensor, sizes: Tensor, epoch: int) -> list[tuple[ViewParameters, ...]]:
        """For each sample, the parameters of its views."""
        views = range(self.num_views)
        drawn = [draw_view_parameters(index, sizes, self.augment, self.seed, epoch, view) for view in views]
        return list(zip(*(parameters.rows() for parameters in drawn)))

    def _open(self, sample: int) -> Image.Image | Failure:
        try:
            return open_sample(self.source, sample)
        except DecodeError as error:
            return Failure(sample, self.source.path_of(sample), str(error))

    def _decode(self, sample: int, opened: Image.Image | Failure) -> Image.Image | Failure:
        if isinstance(opened, Failure):
            return opened
        try:
            return decode(opened, self.source.channels)
        except DecodeError as error:
            return Failure(sample, self.source.path_of(sample), str(error))

    def _replace(self, sample: int, epoch: int, failures: list[Failure]) -> Image.Image:
        """Another sample's picture in place of one that failed; what fails on the way joins `failures`."""
        for other in replacements(sample, epoch, len(self.source), self.seed):
            image = self._decode(other, self._open(other))
            if not isinstance(image, Failure):
                return image
            failures.append(image)
        last = failures[-1]
        raise UserError(
            f"{self.source.name}: too many images in a row cannot be read, last {last.path} ({last.reason}):"
            " run `misplace data verify`"
        )
