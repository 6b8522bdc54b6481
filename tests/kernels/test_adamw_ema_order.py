"""The two orders of a step: DINO averages after AdamW, MoCo v3 before the keys of the next step.

Each against a plain loop with torch.optim.AdamW in the method's own order, over the teachers that make the keys.
"""

import pytest
import torch

from misplace.kernels.adamw_ema import SUPPORTED, AdamWTensors, update
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.optimizer_states import SETTINGS, drawn, flat, gradients
from misplace.kernels.testing.tolerance import VALUE_FACTOR, ToleranceError, require_close, size

SHAPES, STEPS, DECAY = [(192, 37), (13,)], 6, 0.1
IMPLS = runnable(SUPPORTED)


def momentum(step):
    """Far from one, so that a step too early or too late shows."""
    return 0.5 + 0.07 * step


def by_hand(method, dtype, device):
    """The teacher that makes the keys of each step (DINO: the targets), by the method's own loop."""
    students = drawn(SHAPES, 0, dtype, device)
    teachers, keys = [p.clone() for p in students], []
    optimizer = torch.optim.AdamW(students, **SETTINGS, weight_decay=DECAY, foreach=False)

    def average(step):
        for teacher, student in zip(teachers, students, strict=True):
            teacher.mul_(momentum(step)).add_(student, alpha=1 - momentum(step))

    for step in range(1, STEPS + 1):
        if method == "moco_v3":
            average(step)
        keys.append(flat(teachers).clone())
        for student, gradient in zip(students, gradients(step, dtype, device, SHAPES), strict=True):
            student.grad = gradient
        optimizer.step()
        if method == "dino":
            average(step)
    return torch.stack(keys)


def by_op(impl, device, momentum_of_call):
    """The same teachers where each step is one call; momentum_of_call(step): what is passed."""
    students = drawn(SHAPES, 0, device=device)
    teachers, keys = [p.clone() for p in students], []
    moments = [[torch.zeros_like(p) for p in students] for _ in range(2)]
    tensors = AdamWTensors(students, *moments, [DECAY] * len(SHAPES), teachers)
    for step in range(1, STEPS + 1):
        keys.append(flat(teachers).clone())
        given = gradients(step, device=device, shapes=SHAPES)
        update(tensors, given, step=step, momentum=momentum_of_call(step), impl=impl, **SETTINGS)
    return torch.stack(keys)


@pytest.mark.parametrize("method, ahead", [("moco_v3", 1), ("dino", 0)])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_both_orders(device, impl, method, ahead):
    exact, plain = by_hand(method, torch.float64, device), by_hand(method, torch.float32, device)
    tolerance = [size(plain.double() - exact)]
    keys = by_op(impl, device, lambda step: momentum(step + ahead))
    require_close("teacher", keys, exact, tolerance, factor=VALUE_FACTOR)
    other = by_op(impl, device, lambda step: momentum(step + 1 - ahead))
    with pytest.raises(ToleranceError):
        require_close("teacher", other, exact, tolerance, factor=VALUE_FACTOR)
