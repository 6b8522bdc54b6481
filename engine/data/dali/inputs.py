"""What goes into DALI for one step: encoded files, pictures that are decoded already, and all parameters."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..augmentation import NO_SOLARIZE, ViewParameters
from ..batch import Failure
from ..colour import NONE, colour_maps
from ..decode import DecodeError, check_size, open_image, read_sample
from ..image_ops import GRAY, as_array
from ..sources import Source
from ..step_samples import StepSamples
from .jpeg_header import plain_jpeg_size

READERS = 4  # threads that wait for the disk at once


class Opened(NamedTuple):
    """One sample for DALI. data: an encoded file, uint8 [n], or pixels, uint8 [H, W, C]."""

    data: np.ndarray
    height: int
    width: int

    @property
    def is_file(self) -> bool:
        return self.data.ndim == 1


class StepInputs(NamedTuple):
    """samples: B of them; drawn: the parameters of each view; failures: as a Batch has them."""

    samples: list[Opened]
    drawn: list[ViewParameters]
    index: Tensor
    epoch: int
    failures: tuple[Failure, ...]


class StepInputsOf(StepSamples):
    """`inputs[step]` is the StepInputs of a step: a pure function of the source, the settings and the step.

    JPEGs are left to DALI. Everything else, and every replacement, is decoded here by Pillow, which gives a JPEG
    the same pixels to the bit. Raises as PillowPipeline.
    """

    def __init__(self, source: Source, **settings):
        """settings: StepSamples'."""
        super().__init__(source, **settings)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="misplace-reader")

    def __getitem__(self, step: int) -> StepInputs:
        return self._of(step, self._open)

    def decoded(self, step: int) -> StepInputs:
        """The same step with every picture decoded here: for one that holds a file that DALI refuses."""
        return self._of(step, self._decode)

    def close(self) -> None:
        """Ends the reading threads."""
        self._readers.shutdown(cancel_futures=True)

    def _of(self, step: int, open_one) -> StepInputs:
        epoch, index = self.order.locate(step)
        found, failures = list(self._readers.map(open_one, index.tolist())), []
        for row, sample in enumerate(index.tolist()):
            if isinstance(found[row], Failure):
                failures.append(found[row])
                found[row] = _pixels(as_array(self.samples.replace(sample, epoch, failures)))
        sizes = torch.tensor([(opened.height, opened.width) for opened in found])
        return StepInputs(found, self.draw(index, sizes, epoch), index, epoch, tuple(failures))

    def _open(self, sample: int) -> Opened | Failure:
        """Read, its header checked; decoded unless DALI shall do that."""
        try:
            data = read_sample(self.source, sample)
            size = None
            if isinstance(data, bytes) and self.source.channels == 3:
                size = plain_jpeg_size(data)
            if size is not None:
                check_size(size.width, size.height)
                return Opened(np.frombuffer(data, dtype=np.uint8), *size)
            opened = open_image(data)
        except DecodeError as error:
            return self.samples.failure(sample, error)
        return self._picture(sample, opened)

    def _decode(self, sample: int) -> Opened | Failure:
        return self._picture(sample, self.samples.open(sample))

    def _picture(self, sample: int, opened) -> Opened | Failure:
        image = self.samples.decode(sample, opened)
        return image if isinstance(image, Failure) else _pixels(as_array(image))


def _pixels(array: np.ndarray) -> Opened:
    return Opened(np.require(array, requirements=["C", "W"]), *array.shape[:2])


def view_arrays(parameters: ViewParameters, channels: int) -> dict[str, np.ndarray]:
    """One view's parameters as DALI's operators take them, float32 unless said otherwise.

    start, end [B, 2]: (y, x) where the crop begins and ends; a flipped one begins on its right.
    matrix [B, C, C]: what image_ops.jitter multiplies the colour with; shade [B, C, C]: and with what the mean
    colour, to be added. recolour, blur, solarize bool [B]: whether to; sigma [B]; threshold int32 [B].
    """
    left, top, right, bottom = parameters.box.unbind(1)
    first, last = torch.where(parameters.flip, right, left), torch.where(parameters.flip, left, right)
    start, end = torch.stack((top, first), 1), torch.stack((bottom, last), 1)
    colour = colour_maps(parameters, channels)
    mean = GRAY if channels == 3 else np.ones((1, 1))
    return {
        "start": start.float().numpy(),
        "end": end.float().numpy(),
        "matrix": colour.matrix.astype(np.float32),
        "shade": (colour.shade[:, None, None] * mean).astype(np.float32),
        "recolour": colour.kind != NONE,
        "sigma": parameters.blur_sigma.float().numpy(),
        "blur": (parameters.blur_sigma > 0).numpy(),
        "threshold": parameters.solarize.to(torch.int32).numpy(),
        "solarize": (parameters.solarize < NO_SOLARIZE).numpy(),
    }
