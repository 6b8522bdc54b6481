"""MoCo v3, plain and with DILEMMA."""

import dataclasses

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..frameworks import MocoV3Config
from ..optim import OptimConfig
from .small_data import dilemma, small_data

# ViT-S has 12 heads in MoCo v3, 6 elsewhere. [S]
NUM_HEADS = {"small": 12}


def moco_v3(model: str = "small", data: str | None = None) -> Config:
    """MoCo v3 on dense views: published settings [S]; for `nano`, settings for small data and minutes [O]."""
    if model == "nano":
        return small_data("moco_v3", model, data, MocoV3Config(momentum=0.98, hidden_width=1024, output_width=128))
    return Config(
        recipe="moco_v3",
        model=ModelConfig(name=model, num_heads=NUM_HEADS.get(model)),
        data=DataConfig(batch_size=1024),  # [O] one device; the learning rate scales with it [S]
        framework=MocoV3Config(),
        optim=OptimConfig(),
        run=RunConfig(epochs=300, log_every=10, checkpoint_minutes=10.0),
    )


def moco_v3_dilemma(model: str = "small", data: str | None = None) -> Config:
    """MoCo v3 whose student sees sparse, misplaced views and says which tokens are misplaced."""
    return dataclasses.replace(moco_v3(model, data), recipe="moco_v3_dilemma", pretext=dilemma(model, data))
