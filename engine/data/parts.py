"""Pictures of objects made of parts: what part retrieval, part classification and part segmentation need."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from .sources import Source


class Part(NamedTuple):
    """One part of one object, in pixels of the stored picture."""

    part_class: int  # a position in part_classes
    x: float  # of the middle of the square that shows it
    y: float
    side: float  # of that square
    visible: bool


@runtime_checkable
class PartImages(Source, Protocol):
    """A source whose pictures say where the parts are. Where pictures show one object, label() is its class."""

    part_classes: tuple[str, ...]
    has_masks: bool

    def parts(self, index: int) -> tuple[Part, ...]:
        """Of every object in the picture. UserError where its annotation cannot be read."""
        ...

    def part_mask(self, index: int) -> np.ndarray | None:
        """uint8 [H, W] at the stored size: 0 background, 1 + part class; None where has_masks is False."""
        ...
