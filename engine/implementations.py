"""Which implementation each op runs with: decided once per run, printed, recorded, and handed to every module."""

from collections.abc import Mapping

import torch
from torch import nn

from misplace.kernels import OPS, Impl, ImplUnavailableError, resolve_impl

from .errors import UserError


class Auto(dict):
    """Every op left to its own choice: what modules use outside a run."""

    def __missing__(self, op: str) -> str:
        return "auto"


AUTO: Mapping[str, str] = Auto()


def resolve_implementations(device: torch.device, overrides: str = "") -> dict[str, Impl]:
    """op -> implementation on `device`.

    overrides: "reference" for every op, or "attention=torch,layer_norm=reference" for some. UserError for an
    unknown op, or an implementation that cannot run here, with the reason.
    """
    wanted = dict.fromkeys(OPS, "auto")
    for part in filter(None, overrides.split(",")):
        op, equals, impl = part.partition("=")
        if equals and op not in OPS:
            raise UserError(f"--run.impl {part}: unknown op {op!r}; one of: {', '.join(OPS)}")
        wanted.update({op: impl} if equals else dict.fromkeys(OPS, op))
    try:
        return {op: resolve_impl(op, impl, device) for op, impl in wanted.items()}
    except ImplUnavailableError as error:
        raise UserError(f"--run.impl {overrides}: {error}" if overrides else str(error)) from None


def use_implementations(module: nn.Module, table: Mapping[str, Impl]) -> None:
    """Hand the table to every module below `module`."""
    for layer in module.modules():
        layer.impls = table
