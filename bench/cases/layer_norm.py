"""layer_norm with fp32 weights: reads and writes one number an element, the backward reads two and writes one."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from misplace.kernels import layer_norm

from .. import peers
from ..gate import against_fp64
from ..registry import Case, Check, Thunk

# rows and width: a nano step's student, ViT-S at 25 % and all kept, ViT-B at 25 %
FULL = [(3328, 192), (3200, 384), (12608, 384), (1600, 768)]
TINY = [(5, 33)]
DTYPES = ["bfloat16", "float32"]


class Inputs(NamedTuple):
    x: Tensor  # [rows, D]; with gradients to find in the backward's case, as weight and bias
    weight: Tensor  # fp32 [D]
    bias: Tensor
    dy: Tensor


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As autocast's policy has it: the operator on x widened where x is narrow."""
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, 1e-6).to(x.dtype)


def _inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator).to(device) for _ in range(2))
    return Inputs(*(tensor.requires_grad_(with_backward) for tensor in (x, 1 + weight / 4, bias)), dy)


def _thunk(function, inputs: Inputs) -> Thunk:
    def forward_and_backward():
        y = function(*inputs[:3])
        return y.detach(), *torch.autograd.grad(y, inputs[:3], inputs.dy)

    return forward_and_backward if inputs.x.requires_grad else lambda: (function(*inputs[:3]),)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return _thunk(partial(layer_norm, impl=impl), inputs)


def _compiled(inputs: Inputs) -> Thunk:
    return _thunk(peers.compiled(eager, inputs.x.device), inputs)


def _check(inputs: Inputs, impl: str) -> Check:
    wanted = ["x", "weight", "bias"] if inputs.x.requires_grad else []
    op, oracle = (partial(layer_norm, impl=each) for each in (impl, "reference"))
    tensors = dict(zip(("x", "weight", "bias"), (tensor.detach() for tensor in inputs[:3])))
    return against_fp64(op, eager, oracle, tensors, wanted)


def _case(shape, dtype: str, with_backward: bool) -> Case:
    return Case(
        op="layer_norm",
        mode="forward+backward" if with_backward else "forward",
        shape=f"{shape[0]}x{shape[1]}",
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, with_backward),
        ours=_ours,
        peers={"eager": partial(_thunk, eager), "compile": _compiled},
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
