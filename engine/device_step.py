"""The same training step without a word to the host: what it reads and what it says are tensors on the device."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import TokenPlan

from .distributed import average_gradients
from .method import Method
from .optim import AdamWEMA, StepNumbers
from .pretexts import Detection
from .step import losses_under


class StepInput(NamedTuple):
    """views: uint8 [B, S, S, C] each, local crops last; plan: of the others, stacked; numbers: fp64, see below."""

    views: tuple[Tensor, ...]
    plan: TokenPlan
    numbers: Tensor  # StepNumbers, then the framework's schedule by the order of its names


# what a row of metrics begins with; each named term follows
METRICS = ("loss", "framework_loss", "grad_norm", "found_inf")


@dataclass
class StepOutput:
    """metrics: fp64 [len(METRICS) + terms]; detection: of all views, or None."""

    metrics: Tensor
    terms: tuple[str, ...]
    detection: Detection | None


def device_step(method: Method, optimizer: AdamWEMA, given: StepInput, found_inf: Tensor) -> StepOutput:
    """One update in place, unless found_inf (fp32 scalar, 0 at first) is set, by this step or by one before it.

    A loss or gradient that is not finite sets it, so that weights, moments, teacher and copies stay as the first
    such step found them however many steps have been launched since. The caller counts the steps.
    """
    numbers = StepNumbers(*given.numbers[: len(StepNumbers._fields)])
    schedule = dict(zip(method.framework.schedule(0), given.numbers[len(numbers) :]))
    losses = losses_under(method, given.views, given.plan, schedule)
    losses.total.backward()
    average_gradients(optimizer.parameters)
    grad_norm = optimizer.grad_norm()
    with torch.no_grad():
        is_bad = torch.isfinite(torch.stack([losses.total, grad_norm])).logical_not()
        found_inf.copy_(torch.maximum(found_inf, is_bad.any()))
        optimizer.step(numbers, grad_norm=grad_norm, found_inf=found_inf)
        method.framework.finish_step(found_inf)
        row = [losses.total, losses.framework, grad_norm, found_inf, *losses.terms.values()]
        metrics = torch.stack([value.detach().double() for value in row])
    return StepOutput(metrics, tuple(losses.terms), losses.detection)
