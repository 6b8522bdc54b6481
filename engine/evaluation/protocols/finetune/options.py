"""What fine-tuning can be told, and the two sets of values it starts from."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Suppress

from misplace.engine.data import AugmentConfig
from misplace.engine.errors import UserError

MANY_IMAGES, WIDE = 50_000, 384


@dataclass(frozen=True)
class Settings:
    """Values that the options leave open, each as the option of its name."""

    epochs: int
    batch_size: int
    base_lr: float
    layer_decay: float
    weight_decay: float
    drop_path: float
    mixup: float
    cutmix: float
    smoothing: float
    warmup: float  # share of the training
    crop_scale: tuple[float, float]
    jitter: float  # brightness, contrast and saturation, factors in 1 +- this
    least_steps: int  # of a training, however few its images

    @property
    def augment(self) -> AugmentConfig:
        """One view: a random resized crop, flipped every other time, its colours jittered."""
        colours = dict.fromkeys(("brightness", "contrast", "saturation"), self.jitter)
        return AugmentConfig(
            crop_scale=self.crop_scale,
            jitter_p=float(self.jitter > 0),
            **colours,
            hue=0.0,
            grayscale_p=0.0,
            blur_p=(0.0,),
            solarize_p=(0.0,),
        )


# Table 9 of arXiv 2111.06377; rate and layer decay as its code has them for ViT-B. [S] Left out [O]: RandAugment
# (9, .5), whose operations no pipeline of ours has; instead the jitter of timm's transform where RandAugment is off.
MAE = Settings(
    epochs=100, batch_size=1024, base_lr=5e-4, layer_decay=0.65, weight_decay=0.05, drop_path=0.1, mixup=0.8,
    cutmix=1.0, smoothing=0.1, warmup=0.05, crop_scale=(0.08, 1.0), jitter=0.4, least_steps=0,
)  # fmt: skip

# Thousands of small images, small backbones, a minute for each encoder; so few steps leave no time for mixing. [O]
SMALL_DATA = Settings(
    epochs=3, batch_size=32, base_lr=0.012, layer_decay=0.75, weight_decay=0.05, drop_path=0.0, mixup=0.0,
    cutmix=0.0, smoothing=0.1, warmup=0.1, crop_scale=(0.8, 1.0), jitter=0.0, least_steps=100,
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """finetune: the whole encoder and a head are trained on labelled images, by MAE's recipe or one for small data.

    A value left at none is that of the settings.
    """

    settings: Literal["auto", "mae", "small_data"] = "auto"
    """mae: as published but for RandAugment; small_data: minutes; auto: mae from width 384 and 50,000 images on."""
    shots: Suppress[tuple[int, ...]] = ()  # --shots
    """Labelled images per class, a table row for each number; none: all training images."""
    epochs: int | None = None
    """Passes over the training images."""
    least_steps: int | None = None
    """Steps of a training, whatever its epochs: what few images get."""
    batch_size: int | None = None
    """Images per step; fewer images than that are taken several times, each time under another crop."""
    base_lr: float | None = None
    """Learning rate of the head per 256 images of a batch."""
    layer_decay: float | None = None
    """Each layer's rate is this times that of the layer above it; 1: all the same."""
    weight_decay: float | None = None
    """Of weights; biases, norms, class token and positions have none."""
    drop_path: float | None = None
    """Share of images whose last residual branch is dropped; rises linearly from 0 at the first."""
    mixup: float | None = None
    """alpha of Beta(alpha, alpha); 0: no mixup."""
    cutmix: float | None = None
    """alpha of Beta(alpha, alpha); 0: no CutMix."""
    smoothing: float | None = None
    """Share of a target that is spread over all classes."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Matrix work of the encoder; head, norms and loss are always fp32."""
    workers: int | None = None
    """Threads of DALI or worker processes of Pillow; none: from the cores."""


LIMITS = {  # name: lowest, highest, in words
    "epochs": (1, None, "1 or more"),
    "least_steps": (0, None, "0 or more"),
    "batch_size": (2, None, "2 or more"),
    "base_lr": (1e-12, None, "above 0"),
    "layer_decay": (1e-6, 1, "above 0, up to 1"),
    "weight_decay": (0, None, "0 or more"),
    "drop_path": (0, 0.9, "0 to 0.9"),
    "mixup": (0, None, "0 or more"),
    "cutmix": (0, None, "0 or more"),
    "smoothing": (0, 0.99, "0 to 0.99"),
    "workers": (0, None, "0 or more"),
}


def settings_for(options: Options, width: int, num_images: int) -> Settings:
    """The values to train with; UserError for one that cannot be."""
    _check(options)
    named = {"mae": MAE, "small_data": SMALL_DATA}[_named(options, width, num_images)]
    given = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(Settings)}
    return dataclasses.replace(named, **{k: v for k, v in given.items() if v is not None})


def resolve_options(options: Options, width: int, num_images: int) -> Options:
    """The options with every value that they leave open; UserError as settings_for."""
    settings = settings_for(options, width, num_images)
    open_ones = [name for name, value in vars(options).items() if value is None and hasattr(settings, name)]
    name = _named(options, width, num_images)
    return dataclasses.replace(options, settings=name, **{n: getattr(settings, n) for n in open_ones})


def describe(settings: Settings) -> str:
    """One line of the values that matter most."""
    s = settings
    return (
        f"epochs {s.epochs}, batch {s.batch_size}, rate {s.base_lr * s.batch_size / 256:.2g} at the head, layer decay"
        f" {s.layer_decay:g}, weight decay {s.weight_decay:g}, drop path {s.drop_path:g}, mixup {s.mixup:g}, CutMix"
        f" {s.cutmix:g}, smoothing {s.smoothing:g}"
    )


def _named(options: Options, width: int, num_images: int) -> Literal["mae", "small_data"]:
    if options.settings != "auto":
        return options.settings
    return "mae" if width >= WIDE and num_images >= MANY_IMAGES else "small_data"


def _check(options: Options) -> None:
    for name, (low, high, words) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not (low <= value <= (float("inf") if high is None else high)):
            raise UserError(f"--finetune.{name.replace('_', '-')} {value}: must be {words}")
        if value == float("inf"):
            raise UserError(f"--finetune.{name.replace('_', '-')} {value}: must be finite")
    for shots in options.shots:
        if shots < 1:
            raise UserError(f"--shots {shots}: must be 1 or more")
