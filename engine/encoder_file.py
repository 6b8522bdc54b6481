"""A trained encoder, rebuilt from a run's last checkpoint alone or from an exported file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import latest, load
from .errors import UserError
from .export import TIMM_ARGUMENTS, state_shapes, timm_kwargs
from .models import VisionTransformer
from .run_folder import RunFolder
from .state import METHOD, under


class SavedEncoder(NamedTuple):
    """tensors: the encoder's state; model: the arguments that build it; config: the run's, as plain values."""

    tensors: dict[str, Tensor]
    model: dict
    config: dict
    step: int

    @property
    def seed(self) -> int:
        """Of the run's initial weights; 0 where nothing tells."""
        return self.config.get("run", {}).get("seed", 0)

    def build(self, device: torch.device) -> VisionTransformer:
        """The encoder with these weights, fp32, for evaluation."""
        encoder = VisionTransformer(**self.model)
        encoder.load_state_dict(self.tensors)
        return encoder.to(device).requires_grad_(False)


def read_encoder(path: Path) -> SavedEncoder:
    """The encoder of a run's last checkpoint, or of a file that `misplace export` wrote.

    UserError when there is none, it is damaged, or it is something else.
    """
    if path.is_file():
        return _read_exported(path)
    folder = RunFolder.open(path)
    found = latest(folder.checkpoints)
    if found is None:
        raise UserError(f"{path}: has no checkpoint yet; wait for one, or go on with --resume")
    checkpoint = load(found)
    tensors = under("encoder.", under(METHOD, checkpoint.tensors))
    return SavedEncoder(tensors, checkpoint.state["model"], checkpoint.state["config"], checkpoint.step)


def _read_exported(path: Path) -> SavedEncoder:
    """Nothing tells what it was trained on, nor how its weights began."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        model = _model(metadata, len(tensors))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is not a file that `misplace export` wrote ({error})") from None
    shapes = state_shapes(model)
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise UserError(f"{path}: {name} is {found}, its metadata says {shape}; export it again")
    for name, tensor in tensors.items():
        if name not in shapes or tensor.dtype != torch.float32:
            told = f"is {tensor.dtype}" if name in shapes else "has no place in its model"
            raise UserError(f"{path}: {name} {told}; export it again")
    return SavedEncoder(tensors, model, {}, 0)


def _model(metadata: Mapping[str, str], num_tensors: int) -> dict:
    """The arguments of VisionTransformer that timm's stand for; KeyError, TypeError or ValueError where they do not.

    Numbers that no export writes are refused here, before anything is made of them.
    """
    given = json.loads(metadata["timm_kwargs"])
    model = {ours: given[timms] for ours, timms in TIMM_ARGUMENTS.items()}
    if any(type(value) is not int or value < 1 for value in model.values()) or given != timm_kwargs(model):
        raise ValueError(f"its timm_kwargs are {str(given)[:200]}")
    if model["depth"] > num_tensors:
        raise ValueError(f"a depth of {model['depth']} with {num_tensors} tensors")
    if model["image_size"] % model["patch_size"] or model["width"] % model["num_heads"]:
        raise ValueError("its sides are no multiple of its patches', or its width of its heads")
    model |= {name: [float(value) for value in json.loads(metadata[name])] for name in ("mean", "std")}
    numbers = [*model["mean"], *model["std"]]
    if not all(map(math.isfinite, numbers)) or min(model["std"], default=0) <= 0:
        raise ValueError(f"its mean and std are {metadata['mean']:.99} and {metadata['std']:.99}")
    if not len(model["mean"]) == len(model["std"]) == model["channels"]:
        raise ValueError(f"its mean and std are not of {model['channels']} channels")
    return model
