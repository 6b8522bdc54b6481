"""Views by the native kernel (csrc/render_views.h): those of pillow.render_view, to the bit."""

import numpy as np
import torch
from torch import Tensor

from .augmentation import ViewParameters
from .colour import colour_maps


def available() -> bool:
    """The extension was built."""
    try:
        from misplace.kernels import _C
    except ImportError:
        return False
    return hasattr(_C, "render_views")


def pack(drawn: list[ViewParameters], channels: int) -> Tensor:
    """All parameters of all views for the kernel, fp64 [V, B, 18]."""
    return torch.from_numpy(np.stack([_pack_view(parameters, channels) for parameters in drawn]))


def _pack_view(parameters: ViewParameters, channels: int) -> np.ndarray:
    colour = colour_maps(parameters, channels)
    matrix = np.zeros((len(colour.kind), 9))
    matrix[:, : channels**2] = colour.matrix.reshape(len(matrix), -1)
    of_sample = (colour.shade, colour.kind, parameters.blur_sigma, parameters.solarize, parameters.flip)
    return np.column_stack([parameters.box, matrix, *of_sample]).astype(np.float64)


def render_rows(
    pictures: list[Tensor], parameters: Tensor, rows: range, views: tuple[Tensor, ...], isa: str = ""
) -> None:
    """Writes these rows of every view, in this thread, without the GIL.

    pictures: uint8 [H, W, C] each; parameters: from pack; views: uint8 [B, S, S, C] each.
    """
    from misplace.kernels._C import render_views

    render_views(pictures, parameters, rows.start, rows.stop, list(views), isa)
