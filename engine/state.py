"""The training state as named tensors and plain values: what a checkpoint holds and a resume puts back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint, CheckpointError
from .method import Method
from .optim import AdamWEMA

METHOD, OPTIMIZER = "method.", "optimizer."


def state_tensors(method: Method, optimizer: AdamWEMA) -> dict[str, Tensor]:
    """Every tensor that the next step depends on, by name."""
    tensors = {METHOD + name: tensor for name, tensor in method.state_dict().items()}
    return tensors | {OPTIMIZER + name: tensor for name, tensor in optimizer.state_tensors().items()}


def load_state(checkpoint: Checkpoint, method: Method, optimizer: AdamWEMA) -> None:
    """Puts a checkpoint's tensors back in place; CheckpointError when it is of another method."""
    wanted = {name: tensor.shape for name, tensor in state_tensors(method, optimizer).items()}
    found = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if wanted != found:
        name = min(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise CheckpointError(
            f"checkpoint of step {checkpoint.step} is of another configuration: {name} is "
            f"{_shape(found, name)} there and {_shape(wanted, name)} here; resume with the run's own options"
        )
    method.load_state_dict(under(METHOD, checkpoint.tensors))
    optimizer.load_state_tensors(under(OPTIMIZER, checkpoint.tensors))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _shape(shapes: Mapping[str, torch.Size], name: str) -> Any:
    return list(shapes[name]) if name in shapes else "missing"
