"""The scalars of a step as the numbers that the Triton kernel works with, made on host or device.

grad_scale, lr * decay_scale, 1 / sqrt(1 - beta2^step), lr / (1 - beta1^step), 1 - momentum; on the device a sixth,
found_inf: where that is not 0 the kernel writes nothing.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read(scalar, IS_TENSOR: tl.constexpr):
    if IS_TENSOR:
        return tl.load(scalar).to(tl.float64)
    else:
        return tl.full((), scalar, tl.float64)


@triton.jit
def coefficients_kernel(
    to_ptr,  # fp32 [6]
    step,
    lr,
    decay_scale,
    grad_scale,
    momentum,
    found_inf,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    STEP: tl.constexpr,
    LR: tl.constexpr,
    DECAY_SCALE: tl.constexpr,
    GRAD_SCALE: tl.constexpr,
    MOMENTUM: tl.constexpr,
    FOUND_INF: tl.constexpr,
):
    """In fp64, since 1 - beta2^1 leaves three digits of an fp32. The capitals: whether that scalar is a tensor."""
    count, rate = _read(step, STEP), _read(lr, LR)
    correction1, correction2 = 1 - tl.exp(count * LOG_BETA1), 1 - tl.exp(count * LOG_BETA2)
    tl.store(to_ptr, _read(grad_scale, GRAD_SCALE).to(tl.float32))
    tl.store(to_ptr + 1, (rate * _read(decay_scale, DECAY_SCALE)).to(tl.float32))
    tl.store(to_ptr + 2, (1 / tl.sqrt(correction2)).to(tl.float32))
    tl.store(to_ptr + 3, (rate / correction1).to(tl.float32))
    tl.store(to_ptr + 4, (1 - _read(momentum, MOMENTUM)).to(tl.float32))
    tl.store(to_ptr + 5, _read(found_inf, FOUND_INF).to(tl.float32))


def coefficients_on_device(
    numbers: list[float], scalars: list[Tensor | None], betas: tuple[float, float], like: Tensor
) -> Tensor:
    """fp32 [6]; a scalar that is None is in numbers."""
    to = like.new_empty(6, dtype=torch.float32)
    mixed = [number if scalar is None else scalar for number, scalar in zip(numbers, scalars)]
    logs = [math.log(beta) if beta > 0 else -math.inf for beta in betas]
    coefficients_kernel[(1,)](to, *mixed, *logs, *(scalar is not None for scalar in scalars), num_warps=1)
    return to


def coefficients_on_host(numbers: list[float], betas: tuple[float, float]) -> tuple[float, ...]:
    """The first five of numbers alone, found_inf being 0."""
    step, lr, decay_scale, grad_scale, momentum, _ = numbers
    inverse_root = (1 - betas[1] ** step) ** -0.5
    return grad_scale, lr * decay_scale, inverse_root, lr / (1 - betas[0] ** step), 1 - momentum
