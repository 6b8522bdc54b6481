"""The specification of adamw_ema, in eager PyTorch."""

from torch import Tensor

from .tensors import AdamWTensors, Scalars


def adamw_ema_reference(
    tensors: AdamWTensors,
    gradients: list[Tensor | None],
    scalars: Scalars,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """For each tensor p with a gradient g, m = exp_avg, v = exp_avg_sq, s = step:

    g = grad_scale * g;  p = p * (1 - lr * decay_scale * weight_decay)
    m = m + (1 - beta1) * (g - m);  v = beta2 * v + (1 - beta2) * g^2
    p = p - lr / (1 - beta1^s) * m / (sqrt(v) / sqrt(1 - beta2^s) + eps)
    teacher = teacher + (1 - momentum) * (p - teacher)      so that equal stays equal to the bit
    copies = p and teacher, rounded to the copies' dtype

    All in the dtype of p (fp32, or fp64 as the oracle), every operation rounded as in
    torch.optim.AdamW(foreach=False), to which p, m and v are equal to the bit. Without a gradient nothing of a
    tensor changes, and where found_inf is not 0 nothing at all. The teacher sees the p of this call: with this
    step's momentum that is DINO's order (the average after the step), with the next step's it is MoCo v3's (the
    average before the next step's keys).
    Source: [S] Loshchilov and Hutter 2019; [S] the EMA teacher of MoCo (He et al. 2020).
    """
    now = scalars.host()
    if now.found_inf:
        return
    for i, parameter in enumerate(tensors.parameters):
        if gradients[i] is None:
            continue
        gradient = gradients[i].to(parameter.dtype) * now.grad_scale
        decay = now.decay_scale * tensors.weight_decay[i]
        _adamw(parameter, gradient, tensors.exp_avg[i], tensors.exp_avg_sq[i], now.step, now.lr, betas, eps, decay)
        teacher = tensors.teacher[i]
        if tensors.student_copies[i] is not None:
            tensors.student_copies[i].copy_(parameter)
        if teacher is not None:
            teacher.add_(parameter - teacher, alpha=1 - now.momentum)
        if tensors.teacher_copies[i] is not None:
            tensors.teacher_copies[i].copy_(teacher)


def _adamw(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float,
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
