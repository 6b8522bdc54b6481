"""The names of the ops, and which implementation of one a device would get."""

import importlib

import torch

from .impl import Impl, choose

OPS = (
    "token_plan",
    "patch_embed",
    "layer_norm",
    "linear",
    "attention",
    "gelu",
    "token_bce",
    "info_nce",
    "adamw_ema",
)


def resolve_impl(op: str, impl: Impl | str, device: torch.device) -> Impl:
    """What op(..., impl=impl) runs on tensors of `device`; ImplUnavailableError with the reason where it cannot.

    ValueError for an op that there is not.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; one of: {', '.join(OPS)}")
    return choose(op, impl, device, importlib.import_module(f".{op}.api", __package__).SUPPORTED)
