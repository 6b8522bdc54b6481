"""What every recipe does on small data, in minutes. [O]"""

from typing import NamedTuple

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..data.augmentation import AugmentConfig
from ..optim import OptimConfig
from ..pretexts import DilemmaConfig, NoPretextConfig

GENTLE_CROPS = (0.8, 1.0)  # of the image; with .2 or .5 to 1, Fashion-MNIST gave a lower k-NN and AUROC
BASE_LR = 2e-3


class Wishes(NamedTuple):
    """What some data wants otherwise: changes of the configs of the same names, and the batch."""

    model: dict = {}
    augment: dict = {}
    dilemma: dict = {}
    batch_size: int | None = None


# Only its luma sets a figure of `poses` apart, and few of its tokens show it. With a frozen patch projection, with more
# jitter or with three quarters of the tokens dropped, k-NN stayed behind or at chance.
POSES = Wishes(
    model={"freeze_patch_projection": False},
    augment={"grayscale_p": 0.75, "brightness": 0.05, "contrast": 0.1, "saturation": 0.4, "hue": 0.0},
    dilemma={"drop_rate": 0.5},
    batch_size=64,
)


def small_data(
    recipe: str,
    model: str,
    data: str | None,
    framework,
    *,
    batch_size: int = 128,
    augment: dict | None = None,
    pretext=None,
) -> Config:
    """Gentle crops, PyTorch's own init, a rate that suits minutes, and what the data called `data` wants.

    augment: changes of AugmentConfig, which the data's own give way to.
    """
    wishes = _wishes(data)
    settings = {"crop_scale": GENTLE_CROPS, "blur_p": (0.0, 0.0), "solarize_p": (0.0, 0.0)} | wishes.augment
    images = wishes.batch_size or batch_size
    return Config(
        recipe=recipe,
        model=ModelConfig(name=model, init="uniform_fan_in", **wishes.model),
        data=DataConfig(batch_size=images, augment=AugmentConfig(**(settings | (augment or {})))),
        framework=framework,
        pretext=pretext or NoPretextConfig(),
        optim=OptimConfig(
            base_lr=BASE_LR * batch_size / images,  # it is multiplied by the batch: the rate of a step stays
            weight_decay=0.05,
            betas=(0.9, 0.95),
            warmup=0.1,
            clip_norm=3.0,
        ),
        run=RunConfig(budget="10m"),
    )


def dilemma(model: str, data: str | None) -> DilemmaConfig:
    """DILEMMA, for `nano` as the data wants it."""
    return DilemmaConfig(**_wishes(data).dilemma) if model == "nano" else DilemmaConfig()


def _wishes(data: str | None) -> Wishes:
    return POSES if data is not None and data.partition(":")[0] == "poses" else Wishes()
