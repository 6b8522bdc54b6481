"""Fills in what a configuration leaves to the data and the machine, and refuses what cannot work, before any work."""

import dataclasses
import math
import os
from pathlib import Path

import torch

from .clock import Horizon, parse_duration
from .config import Config
from .data import Source, choose_pipeline
from .errors import UserError
from .frameworks import FRAMEWORKS, MaeConfig
from .models import MODEL_SIZES


def resolve(config: Config, source: Source) -> Config:
    """`config` with its sizes, data pipeline, workers, device and folder decided; UserError where they clash."""
    model = dataclasses.replace(
        config.model,
        image_size=config.model.image_size or source.image_size,
        patch_size=config.model.patch_size or source.patch_size,
    )
    _check_grid(model.image_size, model.patch_size)
    augment = config.data.augment
    if augment.local_views:
        augment = augment.with_local_size(model.image_size, model.patch_size)
        _check_local_grid(augment.local_size, model.patch_size)
    _check_heads(model.name, model.num_heads)
    workers = config.data.workers
    if workers is None:
        workers = max(1, min(16, (os.cpu_count() or 2) - 1))
    run = dataclasses.replace(
        config.run,
        device=str(choose_device(config.run.device)),
        out=config.run.out or next_run_folder(Path("runs"), config.recipe),
    )
    pipeline = choose_pipeline(config.data.pipeline)
    data = dataclasses.replace(config.data, workers=workers, pipeline=pipeline, augment=augment)
    resolved = dataclasses.replace(config, model=model, data=data, run=run)
    _check_kept(resolved)
    _check_local_views(resolved)
    if len(source) < config.data.batch_size:
        raise UserError(
            f"{config.data.source}: {len(source)} images do not fill a batch of {config.data.batch_size}; "
            "lower --data.batch-size"
        )
    horizon(resolved, source)
    return resolved


def horizon(config: Config, source: Source) -> Horizon:
    """How long the run is, from exactly one of steps, epochs and budget."""
    run = config.run
    if run.steps is not None:
        return Horizon(steps=run.steps)
    if run.epochs is not None:
        if not 0 < run.epochs < math.inf:
            raise UserError(f"--epochs {run.epochs}: must be above zero")
        return Horizon(steps=max(1, round(run.epochs * (len(source) // config.data.batch_size))))
    return Horizon(seconds=parse_duration(run.budget or "10m"))


def choose_device(asked: str | None) -> torch.device:
    """cuda where there is one, else cpu; a device asked for and missing is a UserError."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"--device {asked}: not a device; cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: torch {torch.__version__} sees no CUDA device; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {asked}: only cpu and cuda are supported")
    return device


def next_run_folder(parent: Path, recipe: str) -> Path:
    """The first of parent/RECIPE-1, -2, ... that does not exist."""
    number = 1
    while (parent / f"{recipe}-{number}").exists():
        number += 1
    return parent / f"{recipe}-{number}"


def _check_grid(image_size: int, patch_size: int) -> None:
    if patch_size < 1 or image_size < patch_size:
        raise UserError(
            f"image of {image_size} pixels is smaller than a patch of {patch_size}; "
            "lower --model.patch-size or raise --model.image-size"
        )
    if image_size % patch_size:
        near = image_size // patch_size * patch_size
        raise UserError(
            f"--model.image-size {image_size} is not a multiple of --model.patch-size {patch_size}; try {near}"
        )


def _check_local_grid(local_size: int, patch_size: int) -> None:
    if local_size % patch_size:
        near = max(1, local_size // patch_size) * patch_size
        raise UserError(
            f"--data.augment.local-size {local_size} is not a multiple of --model.patch-size {patch_size}; try {near}"
        )


def _check_heads(name: str, num_heads: int | None) -> None:
    width = MODEL_SIZES[name].width
    if num_heads is not None and (num_heads < 1 or width % num_heads):
        raise UserError(f"--model.num-heads {num_heads}: must divide the width {width} of {name}")


def _check_kept(config: Config) -> None:
    """A drop rate that keeps no patch, or leaves nothing to reconstruct, is refused here, not in the first step."""
    patches, rate = (config.model.image_size // config.model.patch_size) ** 2, config.pretext.drop_rate
    kept = math.floor(patches * (1 - rate) + 1e-6)
    if kept < 1:
        raise UserError(f"--pretext.drop-rate {rate} keeps none of {patches} patches; lower it")
    if isinstance(config.framework, MaeConfig) and kept == patches:
        raise UserError(f"--pretext.drop-rate {rate} drops none of {patches} patches for MAE to reconstruct; raise it")


def _check_local_views(config: Config) -> None:
    framework = FRAMEWORKS[type(config.framework)]
    if config.data.augment.local_views and not framework.takes_local:
        able = ", ".join(cls.__name__ for cls in FRAMEWORKS.values() if cls.takes_local)
        raise UserError(f"--data.augment.local-views: {framework.__name__} takes no local crops; {able} does")
