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
    root: Tensor,
    pace: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """The same in foreach operations, for torch.compile to fuse; the scalars of a step are tensors."""
    torch._foreach_lerp_(exp_avg, gradients, 1 - betas[0])
    torch._foreach_mul_(exp_avg_sq, betas[1])
    torch._foreach_addcmul_(exp_avg_sq, gradients, gradients, 1 - betas[1])
    denominators = torch._foreach_sqrt(exp_avg_sq)
    torch._foreach_div_(denominators, root)
    torch._foreach_add_(denominators, eps)
    torch._foreach_mul_(parameters, keep)
    updates = torch._foreach_div(exp_avg, denominators)
    torch._foreach_mul_(updates, step_size)
    torch._foreach_sub_(parameters, updates)
    moves = torch._foreach_sub(parameters, teachers)
    torch._foreach_mul_(moves, pace)
    torch._foreach_add_(teachers, moves)
    if student_copies:
        torch._foreach_copy_(student_copies, parameters)
        torch._foreach_copy_(teacher_copies, teachers)
