"""What the implementations share: the gradients are computed with the values and scaled in backward."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Results(NamedTuple):
    """Gradients of the loss itself; one that nobody asked for is empty."""

    loss: Tensor  # scalar, compute dtype
    batch_centre: Tensor  # [P], compute dtype
    d_student: Tensor  # [V, B, D], gradient_dtype
    d_prototypes: Tensor  # [P, D], gradient_dtype


# compute(student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature, student_temperature,
#         of_student, of_prototypes), the last two: whether that gradient is wanted
Compute = Callable[..., tuple[Tensor, ...]]


def compute_dtype(student: Tensor) -> torch.dtype:
    return torch.promote_types(student.dtype, torch.float32)


def gradient_dtype(tensor: Tensor) -> torch.dtype:
    """That of the tensor; fp16 would lose the gradient of a mean before a loss scale can reach it."""
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


def num_pairs(views: int, teacher_views: int) -> int:
    return views * teacher_views - min(views, teacher_views)


def empty_results(student: Tensor, prototypes: Tensor, of_student: bool, of_prototypes: bool) -> Results:
    """Results without values, as a kernel fills them and as torch.compile traces them."""
    compute = compute_dtype(student)
    return Results(
        student.new_empty((), dtype=compute),
        student.new_empty((prototypes.shape[0],), dtype=compute),
        student.new_empty(student.shape if of_student else (0,), dtype=gradient_dtype(student)),
        prototypes.new_empty(prototypes.shape if of_prototypes else (0,), dtype=gradient_dtype(prototypes)),
    )


def differentiable(
    compute: Compute,
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """loss and batch centre; a gradient that is not required is not computed."""
    constants = tuple(
        tensor.detach()
        for tensor in (teacher, teacher_prototypes, centre, teacher_temperature.to(compute_dtype(student)))
    )
    if torch.is_grad_enabled() and (student.requires_grad or prototypes.requires_grad):
        return _WithGradients.apply(compute, student, prototypes, *constants, student_temperature)
    teacher, teacher_prototypes, centre, teacher_temperature = constants
    inputs = (student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature)
    return compute(*inputs, student_temperature, False, False)[:2]


class _WithGradients(Function):
    @staticmethod
    def forward(
        ctx, compute, student, prototypes, teacher, teacher_prototypes, centre, teacher_temperature, student_temperature
    ):
        inputs = (student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature)
        wanted = ctx.needs_input_grad[1:3]
        loss, batch_centre, *gradients = compute(*inputs, student_temperature, *wanted)
        ctx.dtypes = student.dtype, prototypes.dtype
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(batch_centre)
        ctx.set_materialize_grads(False)
        return loss, batch_centre

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        if d_loss is None:
            return (None,) * 8
        gradients = (
            _scaled(gradient, d_loss).to(dtype) if needed else None
            for gradient, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:3])
        )
        return None, *gradients, None, None, None, None, None


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """gradient * scale, in place where nobody needs it again; a scale of 1, the usual one, costs nothing on a CPU."""
    if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():
        return (gradient.to(scale.dtype) * scale).to(gradient.dtype)
    if scale.device.type == "cpu" and scale.item() == 1:  # reading it on a GPU would stop the host
        return gradient
    return gradient.mul_(scale)
