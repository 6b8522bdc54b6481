"""`poses`: procedural colour JPEGs of articulated figures; the class is the arrangement of the parts."""

from .annotation import VERSION, Annotation
from .dataset import render_dataset
from .difficulty import DEFAULT, Difficulty
from .render import Drawn, Rendered, render_image, render_images, render_mixed
from .skeleton import CLASS_NAMES, HIERARCHY, PART_KINDS, PART_NAMES, Level
from .source import PosesSource, default_root

__all__ = [
    "CLASS_NAMES",
    "DEFAULT",
    "HIERARCHY",
    "PART_KINDS",
    "PART_NAMES",
    "VERSION",
    "Annotation",
    "Difficulty",
    "Drawn",
    "Level",
    "PosesSource",
    "Rendered",
    "default_root",
    "render_dataset",
    "render_image",
    "render_images",
    "render_mixed",
]
