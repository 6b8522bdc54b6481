"""A trained encoder, rebuilt from a run's last checkpoint alone or from an exported file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import latest, load
from .errors import UserError
from .export import TIMM_ARGUMENTS, state_shapes
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
        model = _model(metadata)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a file that `misplace export` wrote ({error})") from None
    for name, shape in state_shapes(model).items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != shape:
            raise UserError(f"{path}: {name} is {found}, its metadata says {shape}; export it again")
    return SavedEncoder(tensors, model, {}, 0)


def _model(metadata: Mapping[str, str]) -> dict:
    """The arguments of VisionTransformer that timm's stand for. KeyError, TypeError or ValueError where they do not."""
    given = json.loads(metadata["timm_kwargs"])
    model = {ours: int(given[timms]) for ours, timms in TIMM_ARGUMENTS.items()}
    return model | {name: [float(v) for v in json.loads(metadata[name])] for name in ("mean", "std")}
