"""gelu between fc1 and fc2: reads and writes one number an element, the backward reads two and writes one."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from misplace.kernels import gelu

from .. import peers
from ..gate import against_fp64
from ..registry import Case, Check, Thunk

# rows and width: the student and a part of the teacher of a nano step, ViT-S at 25 % kept
FULL = [(3328, 768), (1600, 768), (3200, 1536)]
TINY = [(5, 33)]
DTYPES = ["bfloat16", "float32"]


class Inputs(NamedTuple):
    x: Tensor  # with a gradient to find in the backward's case
    dy: Tensor


def _inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
    return Inputs(x.requires_grad_(with_backward), dy)


def _thunk(function, inputs: Inputs) -> Thunk:
    def forward_and_backward():
        y = function(inputs.x)
        return y.detach(), *torch.autograd.grad(y, inputs.x, inputs.dy)

    return forward_and_backward if inputs.x.requires_grad else lambda: (function(inputs.x),)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return _thunk(partial(gelu, impl=impl), inputs)


def _compiled(inputs: Inputs) -> Thunk:
    return _thunk(peers.compiled(F.gelu, inputs.x.device), inputs)


def _check(inputs: Inputs, impl: str) -> Check:
    wanted = ["x"] if inputs.x.requires_grad else []
    op, oracle = (partial(gelu, impl=each) for each in (impl, "reference"))
    return against_fp64(op, F.gelu, oracle, {"x": inputs.x.detach()}, wanted)


def _case(shape, dtype: str, with_backward: bool) -> Case:
    return Case(
        op="gelu",
        mode="forward+backward" if with_backward else "forward",
        shape=f"{shape[0]}x{shape[1]}",
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, with_backward),
        ours=_ours,
        peers={"eager": partial(_thunk, F.gelu), "compile": _compiled},
        check=_check,
        bytes_moved=shape[0] * shape[1] * (5 if with_backward else 2) * getattr(torch, dtype).itemsize,
    )


def cases(*, tiny: bool) -> list[Case]:
    return [
        _case(shape, dtype, with_backward)
        for shape in (TINY if tiny else FULL)
        for dtype in DTYPES
        for with_backward in (False, True)
    ]
