"""What every recipe does on small data, in minutes. [O]"""

import dataclasses

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..data.augmentation import AugmentConfig
from ..frameworks import MaeConfig
from ..optim import OptimConfig
from ..pretexts import DilemmaConfig, NoPretextConfig

GENTLE_CROPS = (0.8, 1.0)  # of the image; with .2 or .5 to 1, Fashion-MNIST gave a lower k-NN and AUROC

# Only its luma sets a figure of `poses` apart, and few of its tokens show it. With more jitter, with three quarters
# dropped or with large batches the contrastive loss stayed at chance for minutes; a patch projection that stays at its
# initial weights, as MoCo v3's does, mixes the hues into every token.
POSES_VIEWS = {"grayscale_p": 0.75, "brightness": 0.05, "contrast": 0.1, "saturation": 0.4, "hue": 0.0}
POSES_DROP_RATE = 0.5
POSES_BATCH = 64


def small_data(
    recipe: str, model: str, framework, *, batch_size: int = 128, augment: dict | None = None, pretext=None
) -> Config:
    """Gentle crops, PyTorch's own init, a rate that suits minutes. augment: changes of AugmentConfig."""
    settings = {"crop_scale": GENTLE_CROPS, "blur_p": (0.0, 0.0), "solarize_p": (0.0, 0.0)} | (augment or {})
    return Config(
        recipe=recipe,
        model=ModelConfig(name=model, init="uniform_fan_in"),
        data=DataConfig(batch_size=batch_size, augment=AugmentConfig(**settings)),
        framework=framework,
        pretext=pretext or NoPretextConfig(),
        optim=OptimConfig(base_lr=2e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup=0.1, clip_norm=3.0),
        run=RunConfig(budget="10m"),
    )


def for_source(config: Config, source: str) -> Config:
    """A recipe's settings for minutes as the data called `source` wants them; published settings stay as they are."""
    if config.model.name != "nano" or source.partition(":")[0] != "poses":
        return config
    data, optim, pretext = config.data, config.optim, config.pretext
    if data.augment.jitter_p:  # MAE has no views but crops
        data = dataclasses.replace(data, augment=dataclasses.replace(data.augment, **POSES_VIEWS))
    if isinstance(pretext, DilemmaConfig) and not isinstance(config.framework, MaeConfig):
        pretext = dataclasses.replace(pretext, drop_rate=POSES_DROP_RATE)
    same_rate = optim.base_lr * data.batch_size / POSES_BATCH  # of a step: a recipe's own grows with the batch
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, freeze_patch_projection=False),
        data=dataclasses.replace(data, batch_size=POSES_BATCH),
        optim=dataclasses.replace(optim, base_lr=same_rate),
        pretext=pretext,
    )
