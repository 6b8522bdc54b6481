"""Which implementation each op runs with: decided once per run, printed, recorded, and handed to every module."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from misplace.kernels import OPS, ImplUnavailableError, attention_choice, resolve_impl

from .errors import UserError


class Auto(dict):
    """Every op left to its own choice: what modules use outside a run."""

    def __missing__(self, op: str) -> str:
        return "auto"


AUTO: Mapping[str, str] = Auto()
BY_SHAPE = "attention"  # left to its measured table, which asks for the shape of every call


def resolve_implementations(device: torch.device, overrides: str = "") -> dict[str, str]:
    """op -> implementation on `device`; for attention "auto", unless it is overridden.

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
        found = {op: resolve_impl(op, impl, device) for op, impl in wanted.items()}
    except ImplUnavailableError as error:
        raise UserError(f"--run.impl {overrides}: {error}" if overrides else str(error)) from None
    return found | ({BY_SHAPE: "auto"} if wanted[BY_SHAPE] == "auto" else {})


class AttentionSize(NamedTuple):
    """Attention of one part of a step. tokens: of the longest sequence; rows: sequences x heads."""

    tokens: int
    rows: int
    head_dim: int
    with_gradient: bool
    mixed: bool = False  # sequences of several lengths


def implementation_names(
    table: Mapping[str, str],
    device: torch.device,
    dtype: torch.dtype,
    sizes: Mapping[str, AttentionSize],  # by who computes it: student, teacher, decoder
) -> dict[str, str]:
    """The table for a reader: what "auto" means for each of `sizes`, such as "native (student, 50 tokens)"."""
    if table[BY_SHAPE] != "auto":
        return {op: str(impl) for op, impl in table.items()}
    chosen = []
    for name, (tokens, rows, head_dim, with_gradient, mixed) in sizes.items():
        flags = {"with_gradient": with_gradient, "mixed": mixed}
        impl = attention_choice(device, dtype, tokens, head_dim, rows, **flags)
        chosen.append(f"{impl} ({name}, {tokens} tokens)")
    return {op: ", ".join(chosen) if op == BY_SHAPE else str(impl) for op, impl in table.items()}


def use_implementations(module: nn.Module, table: Mapping[str, str]) -> None:
    """Hand the table to every module below `module`."""
    for layer in module.modules():
        layer.impls = table
