"""The trained encoder of a run folder, rebuilt from its last checkpoint alone."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint import latest, load
from .errors import UserError
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


def read_encoder(run: Path) -> SavedEncoder:
    """The encoder of a run's last checkpoint; UserError when there is none or it is damaged."""
    folder = RunFolder.open(run)
    path = latest(folder.checkpoints)
    if path is None:
        raise UserError(f"{run}: has no checkpoint yet; wait for one, or go on with --resume")
    checkpoint = load(path)
    tensors = under("encoder.", under(METHOD, checkpoint.tensors))
    return SavedEncoder(tensors, checkpoint.state["model"], checkpoint.state["config"], checkpoint.step)
