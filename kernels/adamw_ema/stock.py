"""adamw_ema by PyTorch's own multi-tensor operators: fused AdamW, foreach lerp, foreach copies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def adamw_ema(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: Sequence[float],
    grad_scale: float | Tensor,
    teacher: Sequence[Tensor | None],
    momentum: float | None,
    student_copies: Sequence[Tensor | None],
    teacher_copies: Sequence[Tensor | None],
) -> None:
    gradients = [g.to(p.dtype).contiguous() for g, p in zip(gradients, parameters)]
    # the fused operator divides by a scale held in a tensor; without one it does not touch the gradient
    divisor = _divisor(grad_scale, parameters[0])
    count = torch.full((), float(step), device=parameters[0].device)
    for decay in dict.fromkeys(weight_decay):
        members = [i for i, own in enumerate(weight_decay) if own == decay]
        torch._fused_adamw_(
            *([tensors[i] for i in members] for tensors in (parameters, gradients, exp_avg, exp_avg_sq)),
            [],
            [count] * len(members),
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )
    _copy(student_copies, parameters)
    followed = [i for i, tensor in enumerate(teacher) if tensor is not None]
    if followed:
        torch._foreach_lerp_([teacher[i] for i in followed], [parameters[i] for i in followed], 1 - momentum)
    _copy(teacher_copies, teacher)


def _divisor(grad_scale: float | Tensor, like: Tensor) -> Tensor | None:
    if isinstance(grad_scale, Tensor):
        return grad_scale.to(torch.float32).reciprocal()
    return None if grad_scale == 1.0 else like.new_full((), 1 / grad_scale, dtype=torch.float32)


def _copy(copies: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> None:
    pairs = [(copy, source) for copy, source in zip(copies, sources) if copy is not None]
    if pairs:
        torch._foreach_copy_([copy for copy, _ in pairs], [source for _, source in pairs])
