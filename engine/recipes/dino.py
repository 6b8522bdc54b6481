"""DINO, plain and with DILEMMA."""

import dataclasses

from ..config import Config, DataConfig, ModelConfig, RunConfig
from ..data.augmentation import AugmentConfig
from ..frameworks import DinoConfig
from ..optim import OptimConfig
from .small_data import dilemma, small_data

EPOCHS = 800


def dino(model: str = "small", data: str | None = None) -> Config:
    """DINO, 2 global and 8 local crops: published settings [S]; for `nano`, settings for small data and minutes [O]."""
    if model == "nano":
        return _small_data(model, data)
    return Config(
        recipe="dino",
        model=ModelConfig(name=model, init="trunc_normal", learned_position=True, freeze_patch_projection=False),
        data=DataConfig(batch_size=1024, augment=AugmentConfig(crop_scale=(0.4, 1.0), local_views=8)),
        framework=DinoConfig(),
        optim=OptimConfig(
            base_lr=5e-4,
            final_lr=1e-6,
            weight_decay=0.04,
            final_weight_decay=0.4,
            decay_vectors=False,
            warmup=10 / EPOCHS,
            clip_norm=3.0,
            clip_each=True,
        ),
        run=RunConfig(epochs=EPOCHS, log_every=10, checkpoint_minutes=10.0),
    )


def _small_data(model: str, data: str | None) -> Config:
    """[O] BatchNorm in a small head, few prototypes, none of them held, a faster teacher, small batches.

    In minutes on Fashion-MNIST the head without BatchNorm sorted all images alike, and with learned positions the
    BCE stayed at chance.
    """
    framework = DinoConfig(
        num_prototypes=1024,
        hidden_width=512,
        bottleneck_width=128,
        batch_norm=True,
        final_teacher_temperature=0.04,
        held_epochs=0,
        momentum=0.98,
    )
    local = {"local_views": 4, "local_scale": (0.2, 0.5), "local_blur_p": 0.0}
    return small_data("dino", model, data, framework, batch_size=64, augment=local)


def dino_dilemma(model: str = "small", data: str | None = None) -> Config:
    """DINO whose student sees the global crops sparse and misplaced; local crops and teacher are whole. [O]"""
    return dataclasses.replace(dino(model, data), recipe="dino_dilemma", pretext=dilemma(model, data))
