"""prototype_ce: what one product costs and the bytes that must move.

A product with the prototypes takes 2 D operations for a row and a prototype: forward one for each row of student and
teacher, backward two for each row of the student. The least traffic is a read of the prototypes of both and a
write of the gradient of those of the student.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import prototype_ce
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, VALUE_FACTOR, size

from .. import peers
from ..peers.prototype_ce import eager_prototype_ce, forward_backward
from ..registry import Case, Check, Thunk

NUM_VALUES = 2  # loss and batch centre; gradients follow
# crops, global crops, images, prototypes, width
FULL = [(10, 2, 16, 65536, 256), (10, 2, 64, 65536, 256), (2, 2, 64, 65536, 256), (10, 2, 128, 8192, 256)]
TINY = [(3, 2, 2, 61, 16)]
DTYPES = (torch.bfloat16, torch.float32)


class Inputs(NamedTuple):
    student: Tensor  # [V, B, D]
    prototypes: Tensor  # fp32 [P, D]
    teacher: Tensor  # [G, B, D]
    teacher_prototypes: Tensor  # fp32 [P, D]
    centre: Tensor  # fp32 [P]


def _inputs(
    views: int, global_views: int, batch: int, num_prototypes: int, width: int, dtype: torch.dtype, device: torch.device
) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    prototypes = normal(num_prototypes, width)
    return Inputs(
        normal(views, batch, width).to(dtype).requires_grad_(),
        prototypes.clone().requires_grad_(),
        normal(global_views, batch, width).to(dtype),
        prototypes + normal(num_prototypes, width) / 8,
        normal(num_prototypes) / 16,
    )


def _function(student, prototypes, teacher, teacher_prototypes, centre, *, impl: str):
    return prototype_ce(student, teacher, prototypes, teacher_prototypes, centre, impl=impl)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    return partial(forward_backward, partial(_function, impl=impl), *inputs)


def _eager(inputs: Inputs) -> Thunk:
    return partial(forward_backward, eager_prototype_ce, *inputs)


def _compiled(inputs: Inputs) -> Thunk:
    return partial(forward_backward, peers.compiled(eager_prototype_ce, inputs.student.device), *inputs)


def _check(inputs: Inputs, impl: str) -> Check:
    """The largest share of the derived tolerance that a value or a gradient takes; above 1 it is wrong."""
    wide = (tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs)
    exact = _ours(Inputs(*wide), "torch")()
    plain, actual = _eager(inputs)(), _ours(inputs, impl)()
    shares = []
    for i, (ours, eager, oracle) in enumerate(zip(actual, plain, exact, strict=True)):
        factor = VALUE_FACTOR if i < NUM_VALUES else GRADIENT_FACTOR
        band = torch.finfo(ours.dtype).eps * size(oracle).largest
        allowed = factor * size(eager.double() - oracle).largest + band
        shares.append(size(ours.double() - oracle).largest / allowed)
    return Check(error=max(shares), bound=1.0)


def _case(views: int, global_views: int, batch: int, num_prototypes: int, width: int, dtype: torch.dtype) -> Case:
    rows, teacher_rows = views * batch, global_views * batch
    return Case(
        op="prototype_ce",
        mode="forward+backward",
        shape=f"V={views} G={global_views} B={batch} P={num_prototypes} D={width}",
        dtype=str(dtype).removeprefix("torch."),
        make_inputs=partial(_inputs, views, global_views, batch, num_prototypes, width, dtype),
        ours=_ours,
        peers={"eager": _eager, "compile": _compiled},
        check=_check,
        bytes_moved=4 * 3 * num_prototypes * width,
        operations=2 * num_prototypes * width * (3 * rows + teacher_rows),
    )


def cases(*, tiny: bool) -> list[Case]:
    return [_case(*shape, dtype) for shape in (TINY if tiny else FULL) for dtype in DTYPES]
