"""gelu between fc1 and fc2, alone and with the bias of fc1: reads and writes one number an element, the backward
reads two and writes one."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from misplace.kernels import gelu

from .. import peers
from ..gate import against_fp64
from ..registry import Case, Check, Thunk

# rows and width: a nano step's student, ViT-S at 25 % and all kept, ViT-B at 25 %
FULL = [(3328, 768), (3200, 1536), (12608, 1536), (1600, 3072)]
TINY = [(5, 33)]
DTYPES = ["bfloat16", "float32"]


class Inputs(NamedTuple):
    learned: tuple[Tensor, ...]  # x and perhaps an fp32 bias; with gradients to find in the backward's cases
    dy: Tensor


def eager(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias.to(x.dtype))


def _inputs(shape, dtype: str, biased: bool, with_backward: bool, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
    learned = (x, torch.randn(shape[-1], generator=generator).to(device)) if biased else (x,)
    return Inputs(tuple(tensor.requires_grad_(with_backward) for tensor in learned), dy)


def _thunk(function, inputs: Inputs) -> Thunk:
    def forward_and_backward():
        y = function(*inputs.learned)
        return y.detach(), *torch.autograd.grad(y, inputs.learned, inputs.dy)

    return forward_and_backward if inputs.learned[0].requires_grad else lambda: (function(*inputs.learned),)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return _thunk(partial(gelu, impl=impl), inputs)


def _compiled(inputs: Inputs) -> Thunk:
    return _thunk(peers.compiled(eager, inputs.dy.device), inputs)


def _check(inputs: Inputs, impl: str) -> Check:
    tensors = dict(zip(("x", "bias"), (tensor.detach() for tensor in inputs.learned)))
    wanted = list(tensors) if inputs.learned[0].requires_grad else []
    op, oracle = (partial(gelu, impl=each) for each in (impl, "reference"))
    return against_fp64(op, eager, oracle, tensors, wanted)


def _case(shape, dtype: str, biased: bool, with_backward: bool) -> Case:
    return Case(
        op="gelu",
        mode="forward+backward" if with_backward else "forward",
        shape=f"{shape[0]}x{shape[1]}" + (" bias" if biased else ""),
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, biased, with_backward),
        ours=_ours,
        peers={"eager": partial(_thunk, eager), "compile": _compiled},
        check=_check,
        bytes_moved=shape[0] * shape[1] * (5 if with_backward else 2) * getattr(torch, dtype).itemsize,
    )


def cases(*, tiny: bool) -> list[Case]:
    return [
        _case(shape, dtype, biased, with_backward)
        for shape in (TINY if tiny else FULL)
        for dtype in DTYPES
        for biased in (False, True)
        for with_backward in (False, True)
    ]
