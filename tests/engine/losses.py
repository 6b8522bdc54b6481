"""Losses of a short run, step by step, with any implementation and in fp64."""

import pytest
import torch

from misplace.engine.data import make_loader, open_source
from misplace.engine.frameworks import FRAMEWORKS
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.models import VisionTransformer
from misplace.engine.step import training_step

CPU = torch.device("cpu")


def train(config, impl, *, steps, double=False):
    """The loss of each of `steps` steps, fp64 [steps]."""
    source = open_source(config.data.source)
    impls = resolve_implementations(CPU, impl)
    method = build_method(config, source, impls)
    if double:
        method.double()
        for module in method.modules():
            if isinstance(module, VisionTransformer):
                module.compute_dtype = torch.float64
    optimizer = build_optimizer(method, config, impls)
    data = config.data
    loader = make_loader(
        source,
        batch_size=data.batch_size,
        num_views=FRAMEWORKS[type(config.framework)].num_views,
        image_size=config.model.image_size,
        augment=data.augment,
        seed=0,
    )
    losses = [
        training_step(
            method, optimizer, batch, config, progress=step / steps, next_progress=lambda step=step: (step + 1) / steps
        ).loss
        for step, batch in zip(range(steps), loader)
    ]
    return torch.tensor(losses, dtype=torch.float64)


def exact(config, *, steps):
    """The reference in fp64 throughout: what casts to fp32 casts to fp64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return train(config, "reference", steps=steps, double=True)
