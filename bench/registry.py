"""What can be measured: one module of misplace.bench.cases per op, found by its name."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from misplace.engine.errors import UserError

from . import cases

Thunk = Callable[[], Any]


class Check(NamedTuple):
    """The gate: an implementation is measured only where error <= bound."""

    error: float  # against the fp64 reference; entries that differ, for ops that must agree to the bit
    bound: float


@dataclass(frozen=True)
class Case:
    """One op at one shape, and everything it is held against.

    Both sides run on the same `make_inputs` (random, never zeros). `bytes_moved` and `operations` are the
    least that any implementation needs; `operations` counts matrix work only, 0 where there is none.
    """

    op: str
    mode: str  # "forward", "forward+backward" or "step"
    shape: str
    dtype: str  # of the computation, as torch names it
    make_inputs: Callable[[torch.device], Any]
    ours: Callable[[Any, str], Thunk]  # (inputs, impl)
    peers: Mapping[str, Callable[[Any], Thunk]]
    check: Callable[[Any, str], Check]  # (inputs, impl)
    bytes_moved: int
    operations: int = 0


def op_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(cases.__path__))


def cases_of(op: str, *, tiny: bool) -> list[Case]:
    """The cases of one op; `tiny` shapes rehearse the measurement and say nothing about speed."""
    if op not in op_names():
        raise UserError(f"bench: unknown op {op!r}; one of {', '.join(op_names())}")
    return importlib.import_module(f"{cases.__name__}.{op}").cases(tiny=tiny)
