"""adamw_ema on the tensors of a ViT: each byte read and written once is 36 B a parameter, 40 with the copies."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels.adamw_ema import AdamWTensors, update
from misplace.kernels.testing.tolerance import VALUE_FACTOR, size

from .. import peers
from ..peers.adamw_ema import eager_step, foreach_step
from ..registry import Case, Check, Thunk

LR, BETAS, EPS, DECAY, MOMENTUM, STEP = 1e-5, (0.9, 0.999), 1e-8, 0.1, 0.99, 3
NUM_CHECKED = 12  # tensors that the gate looks at: one block, every kind of shape
FULL = [("ViT-S/16", 384, 12, True), ("ViT-S/16", 384, 12, False)]
TINY = [("tiny", 24, 1, True)]


class Inputs(NamedTuple):
    tensors: AdamWTensors
    gradients: list[Tensor]


def shapes(width: int, depth: int) -> list[tuple[int, ...]]:
    """The parameters of a ViT's blocks and its ends."""
    vector, hidden = (width,), 4 * width
    block = [vector, vector, (3 * width, width), (3 * width,), (width, width), vector]
    block += [vector, vector, (hidden, width), (hidden,), (width, hidden), vector]
    return block * depth + [(1, 1, width), vector, vector, (1, width), (1,)]


def _inputs(width: int, depth: int, copies: bool, device: torch.device) -> Inputs:
    def drawn(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator).to(device) for shape in shapes(width, depth)]

    parameters, teacher = drawn(0), drawn(1)
    low = (lambda masters: [master.bfloat16() for master in masters]) if copies else lambda masters: None
    moments = [m * 0.01 for m in drawn(2)], [v.square() * 1e-4 for v in drawn(3)]
    decay = [DECAY] * len(parameters)
    tensors = AdamWTensors(parameters, *moments, decay, teacher, low(parameters), low(teacher))
    return Inputs(tensors, [g * 0.01 for g in drawn(4)])


def _ours(inputs: Inputs, impl: str) -> Thunk:
    def step() -> list[Tensor]:
        update(inputs.tensors, inputs.gradients, step=STEP, lr=LR, betas=BETAS, eps=EPS, momentum=MOMENTUM, impl=impl)
        return inputs.tensors.parameters

    return step


def _present(entries: list[Tensor | None]) -> list[Tensor]:
    return [entry for entry in entries if entry is not None]


def _eager(inputs: Inputs) -> Thunk:
    tensors = inputs.tensors
    optimizer = torch.optim.AdamW(tensors.parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)
    for parameter, gradient, first, second in zip(
        tensors.parameters, inputs.gradients, tensors.exp_avg, tensors.exp_avg_sq
    ):
        parameter.grad = gradient
        count = torch.tensor(STEP - 1.0, device=parameter.device)
        optimizer.state[parameter] = {"step": count, "exp_avg": first, "exp_avg_sq": second}
    copies = _present(tensors.student_copies) + _present(tensors.teacher_copies)
    copied = (tensors.parameters + tensors.teacher) if copies else []

    def step() -> list[Tensor]:
        with torch.no_grad():
            eager_step(optimizer, tensors.parameters, tensors.teacher, MOMENTUM, copied, copies)
        return tensors.parameters

    return step


def _compiled(inputs: Inputs) -> Thunk:
    tensors, device = inputs.tensors, inputs.tensors.device
    numbers = (1 - LR * DECAY, LR / (1 - BETAS[0] ** STEP), (1 - BETAS[1] ** STEP) ** 0.5, 1 - MOMENTUM)
    scalars = [torch.tensor(number, device=device) for number in numbers]
    run = peers.compiled(foreach_step, device)
    lists = (tensors.parameters, inputs.gradients, tensors.exp_avg, tensors.exp_avg_sq, tensors.teacher)

    def step() -> list[Tensor]:
        with torch.no_grad():
            run(*lists, _present(tensors.student_copies), _present(tensors.teacher_copies), *scalars, BETAS, EPS)
        return tensors.parameters

    return step


def _check(inputs: Inputs, impl: str) -> Check:
    """Of parameters, moments and teacher after one step: the pair of error and bound with the least room."""
    exact, plain, actual = (
        _advanced(inputs, which, dtype)
        for which, dtype in (("reference", torch.float64), ("reference", torch.float32), (impl, torch.float32))
    )
    checks = []
    for true, eager, ours in zip(exact, plain, actual, strict=True):
        allowed = VALUE_FACTOR * size(eager - true).largest + torch.finfo(torch.float32).eps * size(true).largest
        checks.append(Check(size(ours - true).largest, allowed))
    return max(checks, key=lambda check: check.error / check.bound)


def _advanced(inputs: Inputs, impl: str, dtype: torch.dtype) -> list[Tensor]:
    """Parameters, moments and teacher of the first tensors after one step, each as one fp64 vector."""
    from_tensors = inputs.tensors
    lists = (from_tensors.parameters, from_tensors.exp_avg, from_tensors.exp_avg_sq, from_tensors.teacher)
    state = [[tensor.detach().to(dtype, copy=True) for tensor in entries[:NUM_CHECKED]] for entries in lists]
    tensors = AdamWTensors(*state[:3], [DECAY] * len(state[0]), state[3])
    _ours(Inputs(tensors, inputs.gradients[:NUM_CHECKED]), impl)()
    return [torch.cat([tensor.flatten() for tensor in entries]).double() for entries in state]


def cases(*, tiny: bool) -> list[Case]:
    return [
        Case(
            op="adamw_ema",
            mode="step",
            shape=f"{name} {len(shapes(width, depth))} tensors {'with' if copies else 'without'} copies",
            dtype="float32",
            make_inputs=partial(_inputs, width, depth, copies),
            ours=_ours,
            peers={"eager": _eager, "compile": _compiled},
            check=_check,
            bytes_moved=sum(torch.Size(shape).numel() for shape in shapes(width, depth)) * (40 if copies else 36),
        )
        for name, width, depth, copies in (TINY if tiny else FULL)
    ]
