"""adamw_ema on the GPU in one launch over all tensors: one program updates one piece of one tensor.

Formula         reference.py, in fp32.
Bytes moved     read p, g, m, v, teacher, write p, m, v, teacher: 36 B a parameter with fp32 gradients; each
                bf16 copy adds 2 B.
Operations      some 25 a parameter, no matrix work: far below the memory's time.
Saved           nothing: an update has no gradient.
Against eager   fused AdamW (28 B), foreach lerp (12 B) and foreach copies (6 B each) read parameters and teacher
                again and launch per chunk of tensors.

Addresses, sizes and decays lie in a table on the device (table.py) that is written when a tensor has moved. With
scalars in tensors a program of one thread turns them into coefficients first, so that a captured CUDA graph follows
them; a graph needs its AdamWTensors alive, and each graph its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .coefficients import coefficients_on_device, coefficients_on_host
from .table import FIELDS, NUM_WARPS, PIECE, current_table, make_addresses
from .tensors import AdamWTensors, Scalars


@triton.jit
def _pointer(address, DTYPE: tl.constexpr, FAST: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE))
    if FAST:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(address, offset, mask, DTYPE: tl.constexpr, FAST: tl.constexpr):
    pointer = _pointer(address, DTYPE, FAST) + offset
    if FAST:
        return tl.load(pointer).to(tl.float32)
    else:
        return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(address, offset, mask, value, DTYPE: tl.constexpr, FAST: tl.constexpr):
    pointer = _pointer(address, DTYPE, FAST) + offset
    if FAST:
        tl.store(pointer, value.to(DTYPE))
    else:
        tl.store(pointer, value.to(DTYPE), mask=mask)


@triton.jit
def _load_gradient(address, offset, mask, kind, FAST: tl.constexpr):
    if kind == 0:
        gradient = _load(address, offset, mask, tl.float32, FAST)
    elif kind == 1:
        gradient = _load(address, offset, mask, tl.bfloat16, FAST)
    else:
        gradient = _load(address, offset, mask, tl.float16, FAST)
    return gradient


@triton.jit
def _update(row, gradient_address, begin, size, grad_scale, decay_rate, inverse_root, step_size, pace,
            rate1, beta2, rate2, eps, PIECE: tl.constexpr, FAST: tl.constexpr):  # fmt: skip
    """One piece; FAST: it is whole and every address divisible by 16. row: the tensor's fields (table.py)."""
    offset = begin + tl.arange(0, PIECE)
    mask = offset < size
    exp_avg_address, exp_avg_sq_address, teacher_address = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    student_copy, teacher_copy = tl.load(row + 5), tl.load(row + 6)
    weight_decay = tl.load(row + 9).to(tl.int32).to(tl.float32, bitcast=True)
    gradient = _load_gradient(gradient_address, offset, mask, tl.load(row + 8), FAST) * grad_scale
    parameter = _load(tl.load(row), offset, mask, tl.float32, FAST)
    exp_avg = _load(exp_avg_address, offset, mask, tl.float32, FAST)
    exp_avg_sq = _load(exp_avg_sq_address, offset, mask, tl.float32, FAST)
    exp_avg += rate1 * (gradient - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + rate2 * gradient * gradient
    direction = exp_avg / (tl.sqrt(exp_avg_sq) * inverse_root + eps)
    parameter = parameter * (1 - decay_rate * weight_decay) - step_size * direction
    _store(tl.load(row), offset, mask, parameter, tl.float32, FAST)
    _store(exp_avg_address, offset, mask, exp_avg, tl.float32, FAST)
    _store(exp_avg_sq_address, offset, mask, exp_avg_sq, tl.float32, FAST)
    if student_copy != 0:
        _store(student_copy, offset, mask, parameter, tl.bfloat16, FAST)
    if teacher_address != 0:
        teacher = _load(teacher_address, offset, mask, tl.float32, FAST)
        teacher += pace * (parameter - teacher)
        _store(teacher_address, offset, mask, teacher, tl.float32, FAST)
        if teacher_copy != 0:
            _store(teacher_copy, offset, mask, teacher, tl.bfloat16, FAST)


@triton.jit
def adamw_ema_kernel(
    table_ptr,  # int64: FIELDS per tensor, then per piece its tensor << 32 | its number in the tensor
    coefficients_ptr,  # fp32 [6], read where ON_DEVICE
    num_tensors,
    grad_scale,
    decay_rate,
    inverse_root,
    step_size,
    pace,
    rate1,
    beta2,
    rate2,
    eps,
    FIELDS: tl.constexpr,
    PIECE: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    found_inf = 0.0
    if ON_DEVICE:
        grad_scale, decay_rate = tl.load(coefficients_ptr), tl.load(coefficients_ptr + 1)
        inverse_root, step_size = tl.load(coefficients_ptr + 2), tl.load(coefficients_ptr + 3)
        pace, found_inf = tl.load(coefficients_ptr + 4), tl.load(coefficients_ptr + 5)
    piece = tl.load(table_ptr + num_tensors * FIELDS + tl.program_id(0))
    row = table_ptr + (piece >> 32) * FIELDS
    begin = (piece & 0xFFFFFFFF) * PIECE
    gradient_address, size = tl.load(row + 1), tl.load(row + 7)
    if (gradient_address != 0) & (found_inf == 0.0):
        if (begin + PIECE <= size) & (tl.load(row + 10) == 1):
            _update(row, gradient_address, begin, size, grad_scale, decay_rate, inverse_root, step_size, pace,
                    rate1, beta2, rate2, eps, PIECE, True)  # fmt: skip
        else:
            _update(row, gradient_address, begin, size, grad_scale, decay_rate, inverse_root, step_size, pace,
                    rate1, beta2, rate2, eps, PIECE, False)  # fmt: skip


_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "adamw_ema_triton(Tensor(a!)[] state, int[] slots, Tensor?[] gradients, float[] weight_decay, float[] numbers, "
    "Tensor?[] scalars, float beta1, float beta2, float eps, Tensor(b!) key, Tensor(c!) staging, Tensor(d!) table"
    ") -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("misplace::adamw_ema_triton", lib=_library)
def _fake(state, slots, gradients, weight_decay, numbers, scalars, beta1, beta2, eps, key, staging, table):
    return None


def _launch(state, slots, gradients, weight_decay, numbers, scalars, beta1, beta2, eps, key, staging, table):
    table = current_table(state, slots, gradients, weight_decay, key, staging, table)
    num_pieces = table.numel() - FIELDS * len(gradients)
    if num_pieces == 0:
        return
    on_device = any(scalar is not None for scalar in scalars)
    coefficients = coefficients_on_device(numbers, scalars, (beta1, beta2), state[0]) if on_device else table
    given = (1.0,) * 5 if on_device else coefficients_on_host(numbers, (beta1, beta2))
    adamw_ema_kernel[(num_pieces,)](
        table, coefficients, len(gradients), *given, 1 - beta1, beta2, 1 - beta2, eps,
        FIELDS=FIELDS, PIECE=PIECE, ON_DEVICE=on_device, num_warps=NUM_WARPS,
    )  # fmt: skip
    torch.autograd.graph.increment_version(state)


_library.impl("adamw_ema_triton", _launch, "CUDA")
_library.impl("adamw_ema_triton", _launch, "CPU")  # the interpreter; api.py refuses anything else there


def adamw_ema_triton(
    tensors: AdamWTensors,
    gradients: list[Tensor | None],
    scalars: Scalars,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """In place; gradients may move from step to step, which costs a small copy to the device."""
    if tensors.addresses is None:
        tensors.addresses = make_addresses(tensors)
    numbers, on_device = scalars.split()
    torch.ops.misplace.adamw_ema_triton(
        tensors.state, tensors.slots, gradients, tensors.weight_decay, numbers, on_device, *betas, eps,
        *tensors.addresses,
    )  # fmt: skip
