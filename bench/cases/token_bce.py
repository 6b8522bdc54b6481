"""token_bce: least traffic is a read of the patch tokens and a write of their gradient, 4 D bytes a token in bf16."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import token_bce
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, VALUE_FACTOR, size

from .. import peers
from ..peers.token_bce import eager_token_bce, forward_backward
from ..registry import Case, Check, Thunk

WRONG_RATE = 0.2
NUM_VALUES = 2  # loss and logits; gradients follow
# images, patch tokens, width
FULL = [(64, 49, 384), (64, 196, 384), (64, 49, 768), (1024, 49, 384)]
TINY = [(4, 9, 64)]


class Inputs(NamedTuple):
    tokens: Tensor  # bf16 [B, 1 + K, D]
    parameters: tuple[Tensor, ...]  # fp32: norm_weight, norm_bias, weight, bias
    target: Tensor  # bool [B, K]


def _inputs(batch: int, kept: int, width: int, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    parameters = (1 + normal(width) / 8, normal(width) / 8, normal(1, width) / width**0.5, normal(1))
    target = torch.rand(batch, kept, generator=generator) < WRONG_RATE
    tokens = normal(batch, 1 + kept, width).bfloat16().requires_grad_()
    return Inputs(tokens, tuple(tensor.requires_grad_() for tensor in parameters), target.to(device))


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return partial(forward_backward, partial(token_bce, impl=impl), (inputs.tokens, *inputs.parameters), inputs.target)


def _peer(inputs: Inputs, function) -> Thunk:
    """The peer's parameters are bf16 copies, made once."""
    parameters = (tensor.detach().bfloat16().requires_grad_() for tensor in inputs.parameters)
    return partial(forward_backward, function, (inputs.tokens, *parameters), inputs.target)


def _compiled(inputs: Inputs) -> Thunk:
    return _peer(inputs, peers.compiled(eager_token_bce, inputs.tokens.device))


def _check(inputs: Inputs, impl: str) -> Check:
    """The largest share of the derived tolerance that a value or a gradient takes; above 1 it is wrong."""
    wide = [tensor.detach().double().requires_grad_() for tensor in (inputs.tokens, *inputs.parameters)]
    exact = forward_backward(partial(token_bce, impl="reference"), tuple(wide), inputs.target)
    plain, actual = _ours(inputs, "reference")(), _ours(inputs, impl)()
    shares = []
    for i, (ours, eager, oracle) in enumerate(zip(actual, plain, exact, strict=True)):
        factor = VALUE_FACTOR if i < NUM_VALUES else GRADIENT_FACTOR
        band = torch.finfo(ours.dtype).eps * size(oracle).largest
        allowed = factor * size(eager.double() - oracle).largest + band
        shares.append(size(ours.double() - oracle).largest / allowed)
    return Check(error=max(shares), bound=1.0)


def cases(*, tiny: bool) -> list[Case]:
    return [
        Case(
            op="token_bce",
            mode="forward+backward",
            shape=f"B={batch} K={kept} D={width}",
            dtype="bfloat16",
            make_inputs=partial(_inputs, batch, kept, width),
            ours=_ours,
            peers={"eager": partial(_peer, function=eager_token_bce), "compile": _compiled},
            check=_check,
            bytes_moved=4 * batch * kept * width,
        )
        for batch, kept, width in (TINY if tiny else FULL)
    ]
