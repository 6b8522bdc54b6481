"""The specification of adamw_ema, in eager PyTorch."""

from collections.abc import Sequence

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
    """For each tensor p with gradient g, m = exp_avg, v = exp_avg_sq, s = step:

    g = grad_scale * g;  p = p * (1 - lr * weight_decay)
    m = m + (1 - beta1) * (g - m);  v = beta2 * v + (1 - beta2) * g^2
    p = p - lr / (1 - beta1^s) * m / (sqrt(v) / sqrt(1 - beta2^s) + eps)
    teacher = teacher + (1 - momentum) * (p - teacher)      so that equal stays equal to the bit
    copies = p and teacher, rounded to the copies' dtype

    All in the dtype of p (fp32, or fp64 as the oracle), every operation rounded as in
    torch.optim.AdamW(foreach=False), to which p, m and v are equal to the bit.
    Source: [S] Loshchilov and Hutter 2019; [S] the EMA teacher of MoCo (He et al. 2020).
    """
    for i, parameter in enumerate(parameters):
        gradient = gradients[i].to(parameter.dtype) * grad_scale
        _adamw(parameter, gradient, exp_avg[i], exp_avg_sq[i], step, lr, betas, eps, weight_decay[i])
        if student_copies[i] is not None:
            student_copies[i].copy_(parameter)
        if teacher[i] is not None:
            teacher[i].add_(parameter - teacher[i], alpha=1 - momentum)
        if teacher_copies[i] is not None:
            teacher_copies[i].copy_(teacher[i])


def _adamw(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    beta1, beta2 = betas
    parameter.mul_(1 - lr * weight_decay)
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    step_size = lr / (1 - beta1**step)
    root = (1 - beta2**step) ** 0.5
    parameter.addcdiv_(exp_avg, (exp_avg_sq.sqrt() / root).add_(eps), value=-step_size)
