"""SimCLR, plain and with DILEMMA."""

import dataclasses

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..data.augmentation import AugmentConfig
from ..frameworks import SimclrConfig
from ..optim import OptimConfig
from .small_data import dilemma, small_data

# strength 1 [S]
AUGMENT = AugmentConfig(
    brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_p=(0.5, 0.5), solarize_p=(0.0, 0.0)
)  # fmt: skip


def simclr(model: str = "small", data: str | None = None) -> Config:
    """SimCLR on dense views: loss, head and augmentation as published [S]; for `nano`, settings for minutes [O].

    SimCLR trained ResNets with LARS; a ViT takes MoCo v3's AdamW here [O].
    """
    if model == "nano":
        return small_data("simclr", model, data, SimclrConfig())
    return Config(
        recipe="simclr",
        model=ModelConfig(name=model),
        data=DataConfig(batch_size=1024, augment=AUGMENT),  # [O] one device
        framework=SimclrConfig(),
        optim=OptimConfig(),
        run=RunConfig(epochs=300, log_every=10, checkpoint_minutes=10.0),
    )


def simclr_dilemma(model: str = "small", data: str | None = None) -> Config:
    """SimCLR whose encoder sees both views sparse and misplaced, and says which tokens are misplaced. [O]"""
    return dataclasses.replace(simclr(model, data), recipe="simclr_dilemma", pretext=dilemma(model, data))
