"""add_layer_norm with fp32 weights: the forward reads two numbers an element and writes two, the backward reads three
and writes one; with a scale for every image two."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from misplace.kernels import add_layer_norm, layer_norm

from .. import peers
from ..gate import against_fp64
from ..registry import Case, Check, Thunk

# images, tokens, width: a nano step's student, ViT-S at 25 % and all kept, ViT-B at 25 %
FULL = [(128, 26, 192), (64, 50, 384), (64, 197, 384), (32, 50, 768)]
TINY = [(2, 3, 33)]
DTYPES = ["bfloat16", "float32"]
# what is measured beside the sum as it is: numbers read and written an element
FORWARD = {"": 4, " in place": 4}
BACKWARD = {"": 8, " drop path": 9}
INPUTS = ("x", "branch", "weight", "bias")


class Inputs(NamedTuple):
    x: Tensor  # [B, N, D]; with gradients to find in the backward's cases, as the next three
    branch: Tensor
    weight: Tensor  # fp32 [D]
    bias: Tensor
    branch_scale: Tensor | None  # fp32 [B]
    dsum: Tensor
    dnormed: Tensor
    inplace: bool

    def run(self, function) -> tuple[Tensor, Tensor]:
        return function(*self[:4], branch_scale=self.branch_scale)


def _sum(x: Tensor, branch: Tensor, branch_scale: Tensor | None) -> Tensor:
    return x + (branch if branch_scale is None else branch * branch_scale.to(x.dtype)[:, None, None])


def eager(x, branch, weight, bias, branch_scale=None) -> tuple[Tensor, Tensor]:
    """As autocast's policy has it: the operator on the sum widened where it is narrow."""
    total = _sum(x, branch, branch_scale)
    return total, F.layer_norm(total.float(), x.shape[-1:], weight, bias, 1e-6).to(x.dtype)


def two_ops(x, branch, weight, bias, branch_scale=None) -> tuple[Tensor, Tensor]:
    """An addition, and our own layer_norm."""
    total = _sum(x, branch, branch_scale)
    return total, layer_norm(total, weight, bias)


def _inputs(shape, dtype: str, variant: str, with_backward: bool, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    of = partial(torch.randn, generator=generator)
    x, branch, dsum, dnormed = (of(shape).to(device, getattr(torch, dtype)) for _ in range(4))
    weight, bias = 1 + of(shape[-1]).to(device) / 4, of(shape[-1]).to(device)
    scale = (of(shape[0]) > -1).float().to(device) / 0.84 if variant == " drop path" else None
    learned = (tensor.requires_grad_(with_backward) for tensor in (x, branch, weight, bias))
    return Inputs(*learned, scale, dsum, dnormed, variant == " in place")


def _thunk(function, inputs: Inputs) -> Thunk:
    def forward_and_backward():
        outputs = inputs.run(function)
        gradients = torch.autograd.grad(outputs, inputs[:4], (inputs.dsum, inputs.dnormed))
        return *(output.detach() for output in outputs), *gradients

    return forward_and_backward if inputs.x.requires_grad else lambda: inputs.run(function)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    if not inputs.inplace:
        return _thunk(partial(add_layer_norm, impl=impl), inputs)
    x = inputs.x.clone()
    branch = torch.zeros_like(x)  # the sum of every round is x again
    return lambda: add_layer_norm(x, branch, *inputs[2:4], inplace=True, impl=impl)


def _compiled(inputs: Inputs) -> Thunk:
    return _thunk(peers.compiled(eager, inputs.x.device), inputs)


def _check(inputs: Inputs, impl: str) -> Check:
    wanted = INPUTS if inputs.x.requires_grad else ()
    op, oracle = (partial(add_layer_norm, impl=each) for each in (impl, "reference"))
    tensors = dict(zip(INPUTS, (tensor.detach() for tensor in inputs[:4])))
    if inputs.branch_scale is not None:
        tensors["branch_scale"] = inputs.branch_scale
    return against_fp64(op, eager, oracle, tensors, wanted)


def _case(shape, dtype: str, variant: str, with_backward: bool, numbers: int) -> Case:
    batch, tokens, width = shape
    return Case(
        op="add_layer_norm",
        mode="forward+backward" if with_backward else "forward",
        shape=f"B={batch} N={tokens} D={width}{variant}",
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, variant, with_backward),
        ours=_ours,
        peers={"eager": partial(_thunk, eager), "compile": _compiled, "two-ops": partial(_thunk, two_ops)},
        check=_check,
        bytes_moved=batch * tokens * width * numbers * getattr(torch, dtype).itemsize,
    )


def cases(*, tiny: bool) -> list[Case]:
    return [
        _case(shape, dtype, variant, with_backward, numbers)
        for shape in (TINY if tiny else FULL)
        for dtype in DTYPES
        for with_backward, variants in ((False, FORWARD), (True, BACKWARD))
        for variant, numbers in variants.items()
    ]
