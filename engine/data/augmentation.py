"""What is done to each view: parameters drawn for a whole batch, before any pixel is touched.

Every pipeline (Pillow, GPU) draws the same crop, jitter and flip from here. A Philox item is four numbers:

    items 0..9   one attempt at a crop: area, ratio, x, y
    item 10      flip, jitter or not, brightness, contrast
    item 11      saturation, hue, grayscale or not, blur or not
    item 12      blur sigma, solarise or not, two unused
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.errors import UserError
from misplace.kernels.philox import Stream, draw, uniform

from .crop import ATTEMPTS, random_boxes

NO_SOLARIZE = 256
LOCAL_SHARE = 96 / 224


@dataclass(frozen=True)
class AugmentConfig:
    """MoCo v3's augmentation [S]; a tuple `..._p` has one probability per view.

    UserError for a value out of range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop."""
    jitter_p: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Factor in 1 +- this."""
    contrast: float = 0.4
    """Factor in 1 +- this."""
    saturation: float = 0.2
    """Factor in 1 +- this."""
    hue: float = 0.1
    """Turn of the colour circle in +- this."""
    grayscale_p: float = 0.2
    """Probability of grayscale."""
    blur_p: tuple[float, ...] = (1.0, 0.1)
    """Probability of Gaussian blur, per view."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, pixels of the view."""
    solarize_p: tuple[float, ...] = (0.0, 0.2)
    """Probability of solarisation, per view."""
    solarize_threshold: int = 128
    """Values from here on are inverted."""
    flip_p: float = 0.5
    """Probability of a horizontal flip."""
    local_views: int = 0
    """Small views beside the others, as in DINO's multi-crop."""
    local_size: int | None = None
    """Side of a small view, pixels; none: 3/7 of the others', in whole patches, which is DINO's 96 of 224."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image's area, small views."""
    local_blur_p: float = 0.5
    """Probability of Gaussian blur, small views."""

    def __post_init__(self):
        for name, low, high in (
            ("crop_scale", 0.0, 1.0),
            ("local_scale", 0.0, 1.0),
            ("crop_ratio", 0.0, 100.0),
            ("blur_sigma", 0.0, 100.0),
        ):
            first, last = getattr(self, name)
            if not low < first <= last <= high:
                raise UserError(f"augment: {name} {first} {last}: must rise, above {low:g}, up to {high:g}")
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            for value in values if isinstance(values, tuple) else (values,):
                if field.name.endswith("_p") and not 0 <= value <= 1:
                    raise UserError(f"augment: {field.name} {value}: a probability, 0 to 1")
        for name, high in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"augment: {name} {getattr(self, name)}: must be 0 to {high}")
        if not 0 <= self.solarize_threshold <= NO_SOLARIZE:
            raise UserError(f"augment: solarize_threshold {self.solarize_threshold}: must be 0 to 256")
        if self.local_views < 0 or (self.local_size is not None and self.local_size < 1):
            size = "the usual" if self.local_size is None else self.local_size
            raise UserError(f"augment: {self.local_views} local views of {size} pixels: not a number of each")

    def with_local_size(self, image_size: int, patch_size: int = 1) -> "AugmentConfig":
        """The same with the side of a small view decided, for views of image_size pixels."""
        if self.local_size is not None:
            return self
        patches = max(1, round(image_size * LOCAL_SHARE / patch_size))
        return dataclasses.replace(self, local_size=patches * patch_size)

    def view_kinds(self, num_views: int, image_size: int) -> tuple["ViewKind", ...]:
        """What each view is drawn as: num_views of image_size pixels, then the local ones.

        UserError where a per-view probability is missing.
        """
        for name in ("blur_p", "solarize_p"):
            if len(getattr(self, name)) < num_views:
                raise UserError(f"augment: {name} needs {num_views} values, one per view")
        large = [ViewKind(image_size, self.crop_scale, self.blur_p[v], self.solarize_p[v]) for v in range(num_views)]
        local_size = self.with_local_size(image_size).local_size
        local = ViewKind(local_size, self.local_scale, self.local_blur_p, 0.0)
        return (*large, *[local] * self.local_views)


class ViewKind(NamedTuple):
    """size: pixels of a side; crop_scale: the crop's share of the image's area; probabilities of blur, solarisation."""

    size: int
    crop_scale: tuple[float, float]
    blur_p: float
    solarize_p: float


class ViewParameters(NamedTuple):
    """One view of each sample, in the order of application; or, from `rows`, of one sample as numbers."""

    box: Tensor  # float64 [B, 4]: left, top, right, bottom, pixels of the source image
    brightness: Tensor  # float64 [B]; 1 changes nothing
    contrast: Tensor  # float64 [B]; 1 changes nothing
    saturation: Tensor  # float64 [B]; 1 changes nothing
    hue: Tensor  # float64 [B], turns; 0 changes nothing
    grayscale: Tensor  # bool [B]
    blur_sigma: Tensor  # float64 [B], pixels of the view; 0 is no blur
    solarize: Tensor  # int64 [B], threshold; 256 changes nothing
    flip: Tensor  # bool [B]

    def rows(self) -> list["ViewParameters"]:
        """One entry per sample, of Python numbers."""
        return [ViewParameters(*row) for row in zip(*(field.tolist() for field in self))]


def draw_views(
    index: Tensor, sizes: Tensor, config: AugmentConfig, kinds: tuple[ViewKind, ...], seed: int, epoch: int
) -> list[ViewParameters]:
    """The parameters of every view; arguments as draw_view_parameters."""
    return [draw_view_parameters(index, sizes, config, kind, seed, epoch, view) for view, kind in enumerate(kinds)]


def draw_view_parameters(
    index: Tensor,  # int64 [B], global sample indices
    sizes: Tensor,  # [B, 2], height and width of each image in pixels
    config: AugmentConfig,
    kind: ViewKind,
    seed: int,
    epoch: int,
    view: int,
) -> ViewParameters:
    """The parameters of one view: a pure function; each row depends on its own index and size only."""
    words = draw(index, ATTEMPTS + 3, seed=seed, epoch=epoch, view=view, stream=Stream.AUGMENTATION)
    numbers = uniform(torch.stack(words, dim=-1))  # [B, items, 4]
    flip, jitter, brightness, contrast = numbers[:, ATTEMPTS].unbind(1)
    saturation, hue, grayscale, blur = numbers[:, ATTEMPTS + 1].unbind(1)
    sigma, solarize = numbers[:, ATTEMPTS + 2, :2].unbind(1)

    jittered = jitter < config.jitter_p
    low, high = config.blur_sigma
    return ViewParameters(
        box=random_boxes(numbers[:, :ATTEMPTS], sizes, kind.crop_scale, config.crop_ratio),
        brightness=(1 + config.brightness * (2 * brightness - 1)).where(jittered, 1.0),
        contrast=(1 + config.contrast * (2 * contrast - 1)).where(jittered, 1.0),
        saturation=(1 + config.saturation * (2 * saturation - 1)).where(jittered, 1.0),
        hue=(config.hue * (2 * hue - 1)).where(jittered, 0.0),
        grayscale=grayscale < config.grayscale_p,
        blur_sigma=(low + (high - low) * sigma).where(blur < kind.blur_p, 0.0),
        solarize=torch.full_like(index, config.solarize_threshold).where(solarize < kind.solarize_p, NO_SOLARIZE),
        flip=flip < config.flip_p,
    )
