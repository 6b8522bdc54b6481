"""The end of a training step as people write it: torch.optim.AdamW, the EMA teacher, and autocast's copies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def eager_step(
    optimizer: torch.optim.AdamW,
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    momentum: float,
    copied: Sequence[Tensor],
    copies: Sequence[Tensor],
) -> None:
    """Three passes over memory: fused AdamW, foreach lerp, foreach copies."""
    optimizer.step()
    torch._foreach_lerp_(teachers, students, 1 - momentum)
    if copies:
        torch._foreach_copy_(copies, copied)


def foreach_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    teachers: list[Tensor],
    student_copies: list[Tensor],
    teacher_copies: list[Tensor],
    keep: Tensor,
    step_size: Tensor,
    inverse_root: Tensor,
    pace: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """The same in plain tensor operations, for torch.compile to fuse; the scalars of a step are tensors."""
    for i, parameter in enumerate(parameters):
        gradient = gradients[i]
        exp_avg[i].lerp_(gradient, 1 - betas[0])
        exp_avg_sq[i].mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        parameter.mul_(keep).sub_(step_size * exp_avg[i] / (exp_avg_sq[i].sqrt() * inverse_root + eps))
        teachers[i].lerp_(parameter, pace)
        if student_copies:
            student_copies[i].copy_(parameter)
            teacher_copies[i].copy_(teachers[i])
