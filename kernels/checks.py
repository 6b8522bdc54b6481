"""Validation that every op's api.py shares: one line that names the op, the argument and what is wrong."""

import torch
from torch import Tensor

INDEX_DTYPES = (torch.int32, torch.int64)


def require_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """ValueError unless `tensor` has exactly `shape`; `meaning` is the shape in words, such as "[D]"."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {meaning} = {list(shape)}, not {list(tensor.shape)}")


def require_dims(op: str, name: str, tensor: Tensor, dims: int, meaning: str) -> None:
    """ValueError unless `tensor` has `dims` dimensions."""
    if tensor.dim() != dims:
        raise ValueError(f"{op}: {name} must be {meaning}, not {list(tensor.shape)}")


def require_floating(op: str, **tensors: Tensor | None) -> None:
    """TypeError unless every tensor given is of a floating dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, not {tensor.dtype}")


def require_dtype(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """TypeError unless `tensor` has one of `dtypes`."""
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {wanted}, not {tensor.dtype}")


def require_device(op: str, device: torch.device, **tensors: Tensor | None) -> None:
    """ValueError unless every tensor given is on `device`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, the other tensors on {device}")
