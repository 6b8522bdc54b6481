"""The Pillow pipeline: the readable reference that a faster one is held against."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import image_ops
from .augmentation import NO_SOLARIZE, ViewParameters
from .batch import Batch, Failure
from .samples import sizes_of
from .step_samples import StepSamples


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


class PillowPipeline(StepSamples):
    """`pipeline[step]` is the Batch of a step: a pure function of the source, the settings and the step.

    Raises UserError at the start for settings that cannot be, and from a step whose samples and all their
    replacements cannot be read.
    """

    def __getitem__(self, step: int) -> Batch:
        epoch, index = self.order.locate(step)
        opened = [self.samples.open(i) for i in index.tolist()]
        parameters = self._rows(index, sizes_of(opened), epoch)
        channels = self.source.channels
        views = tuple(
            torch.empty((len(opened), kind.size, kind.size, channels), dtype=torch.uint8) for kind in self.kinds
        )
        failures: list[Failure] = []
        for row, sample in enumerate(index.tolist()):
            image = self.samples.decode(sample, opened[row])
            opened[row] = None  # decoded pixels live for one row only
            of_row = parameters[row]
            if isinstance(image, Failure):
                failures.append(image)
                image = self.samples.replace(sample, epoch, failures)
                of_row = self._rows(index[row : row + 1], sizes_of([image]), epoch)[0]
            for view, kind, of_view in zip(views, self.kinds, of_row):
                view.numpy()[row] = render_view(image, of_view, kind.size)
        return Batch(views, index, epoch, tuple(failures))

    def _rows(self, index: Tensor, sizes: Tensor, epoch: int) -> list[tuple[ViewParameters, ...]]:
        """For each sample, the parameters of its views."""
        return list(zip(*(parameters.rows() for parameters in self.draw(index, sizes, epoch))))
