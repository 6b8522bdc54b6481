"""MAE, plain and with DILEMMA."""

import dataclasses

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..data.augmentation import AugmentConfig
from ..frameworks import MaeConfig
from ..optim import OptimConfig
from ..pretexts import DilemmaConfig, NoPretextConfig
from .small_data import small_data

EPOCHS = 1600
DROP_RATE = 0.75  # [S]
# flips and crops alone [S]
NO_COLOUR = {"jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": (0.0,), "solarize_p": (0.0,)}


def mae(model: str = "small", data: str | None = None) -> Config:
    """MAE: published settings [S]; for `nano`, settings for small data and minutes [O]."""
    if model == "nano":
        return _small_data(model, data)
    return Config(
        recipe="mae",
        model=ModelConfig(name=model, init="xavier_whole_qkv", freeze_patch_projection=False),
        data=DataConfig(batch_size=1024, augment=AugmentConfig(crop_scale=(0.2, 1.0), **NO_COLOUR)),  # [O] one device
        framework=MaeConfig(),
        pretext=NoPretextConfig(drop_rate=DROP_RATE),
        optim=OptimConfig(weight_decay=0.05, decay_vectors=False, betas=(0.9, 0.95), warmup=40 / EPOCHS),
        run=RunConfig(epochs=EPOCHS, log_every=10, checkpoint_minutes=10.0),
    )


def _small_data(model: str, data: str | None) -> Config:
    """[O] A small decoder."""
    framework = MaeConfig(decoder_width=128, decoder_depth=2, decoder_heads=4)
    pretext = NoPretextConfig(drop_rate=DROP_RATE)
    config = small_data("mae", model, data, framework, augment=NO_COLOUR, pretext=pretext)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, freeze_patch_projection=False))


def mae_dilemma(model: str = "small", data: str | None = None) -> Config:
    """MAE some of whose tokens enter misplaced; the encoder says which, the decoder puts all at their places. [O]"""
    return dataclasses.replace(mae(model, data), recipe="mae_dilemma", pretext=DilemmaConfig(drop_rate=DROP_RATE))
