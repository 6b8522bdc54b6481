"""adamw_ema by PyTorch's own multi-tensor operators: fused AdamW, foreach lerp, foreach copies."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .tensors import AdamWTensors, Scalars


def adamw_ema_stock(
    tensors: AdamWTensors,
    gradients: list[Tensor | None],
    scalars: Scalars,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """grad_scale stays where it is; for the other scalars the host waits."""
    now = scalars._replace(grad_scale=1.0).host()._replace(grad_scale=scalars.grad_scale)
    live = [i for i, gradient in enumerate(gradients) if gradient is not None]
    if not live or now.found_inf:
        return
    parameters, teacher, student_copies, teacher_copies = (
        [entries[i] for i in live]
        for entries in (tensors.parameters, tensors.teacher, tensors.student_copies, tensors.teacher_copies)
    )
    _fused_adamw(tensors, gradients, live, now, betas, eps)
    _copy(student_copies, parameters)
    followed = [(t, p) for t, p in zip(teacher, parameters) if t is not None]
    if followed:
        torch._foreach_lerp_([t for t, _ in followed], [p for _, p in followed], 1 - now.momentum)
    _copy(teacher_copies, teacher)


def _fused_adamw(
    tensors: AdamWTensors,
    gradients: list[Tensor | None],
    live: list[int],
    now: Scalars,
    betas: tuple[float, float],
    eps: float,
) -> None:
    # the fused operator divides by a scale held in a tensor; without one it does not touch the gradient
    divisor = _divisor(now.grad_scale, tensors.parameters[0])
    count = torch.full((), float(now.step), device=tensors.device)
    for decay in dict.fromkeys(tensors.weight_decay[i] for i in live):
        members = [i for i in live if tensors.weight_decay[i] == decay]
        torch._fused_adamw_(
            [tensors.parameters[i] for i in members],
            [gradients[i].to(tensors.dtype) for i in members],
            [tensors.exp_avg[i] for i in members],
            [tensors.exp_avg_sq[i] for i in members],
            [],
            [count] * len(members),
            lr=now.lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=decay * now.decay_scale,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
        )
    # the fused operator does not tell autograd that it has written
    for entries in (tensors.parameters, tensors.exp_avg, tensors.exp_avg_sq):
        torch.autograd.graph.increment_version([entries[i] for i in live])


def _divisor(grad_scale: float | Tensor, like: Tensor) -> Tensor | None:
    if isinstance(grad_scale, Tensor):
        return grad_scale.reshape(()).double().reciprocal().to(torch.float32)
    return None if grad_scale == 1.0 else like.new_full((), 1 / grad_scale, dtype=torch.float32)


def _copy(copies: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> None:
    pairs = [(copy, source) for copy, source in zip(copies, sources) if copy is not None]
    if pairs:
        torch._foreach_copy_([copy for copy, _ in pairs], [source for _, source in pairs])
