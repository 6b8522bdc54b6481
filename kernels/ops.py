"""The names of the ops, which implementation of one a device would get, and what native ones run on this CPU."""

import importlib

import torch

from .impl import Impl, choose, why_unavailable

OPS = (
    "token_plan",
    "patch_embed",
    "layer_norm",
    "add_layer_norm",
    "linear",
    "attention",
    "gelu",
    "token_bce",
    "info_nce",
    "prototype_ce",
    "restore",
    "patch_mse",
    "adamw_ema",
)
# public function -> the op it is a form of
OP_OF = {**{op: op for op in OPS}, "nt_xent": "info_nce"}


def resolve_impl(op: str, impl: Impl | str, device: torch.device) -> Impl:
    """What op(..., impl=impl) runs on tensors of `device`; ImplUnavailableError with the reason where it cannot.

    ValueError for an op that there is not.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; one of: {', '.join(OPS)}")
    return choose(op, impl, device, importlib.import_module(f".{op}.api", __package__).SUPPORTED)


def cpu_paths() -> dict[str, str]:
    """op -> the instructions its native kernel takes on this CPU, of the ops that tell; empty without _C.

    NotImplementedError where _C was built from older sources.
    """
    cpu, paths = torch.device("cpu"), {}
    if why_unavailable(Impl.NATIVE, cpu):
        return paths
    for op in OPS:
        if Impl.NATIVE in importlib.import_module(f".{op}.api", __package__).SUPPORTED[cpu.type]:
            native = importlib.import_module(f".{op}.native", __package__)
            if tells := getattr(native, "cpu_path", None):
                paths[op] = tells()
    return paths
