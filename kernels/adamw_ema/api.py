"""adamw_ema: AdamW, the EMA teacher and the low-precision copies of both, in one pass over memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import require_device, require_dtype, require_floating, require_shape
from ..impl import Impl, choose
from . import reference, stock

SUPPORTED = {"cpu": (Impl.TORCH, Impl.REFERENCE), "cuda": (Impl.TORCH, Impl.REFERENCE)}
RUN = {Impl.TORCH: stock.adamw_ema, Impl.REFERENCE: reference.adamw_ema}
OP = "adamw_ema"


@torch.no_grad()
def adamw_ema(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: Sequence[float],
    grad_scale: float | Tensor = 1.0,
    teacher: Sequence[Tensor | None] | None = None,
    momentum: float | None = None,
    student_copies: Sequence[Tensor | None] | None = None,
    teacher_copies: Sequence[Tensor | None] | None = None,
    impl: Impl | str = "auto",
) -> None:
    """One optimiser step, in place, on lists with one entry per parameter tensor.

    parameters, exp_avg, exp_avg_sq, teacher: fp32 (or fp64) masters, contiguous, shapes alike. gradients:
    any floating dtype; their contents are undefined afterwards. step: the number of this update, from 1.
    weight_decay: one per tensor. grad_scale: multiplies every gradient (unscaling and clipping); a number,
    or a tensor of one element on the device. teacher: None, or per tensor None or its EMA twin, moved by
    momentum after the update. student_copies and teacher_copies: None, or per tensor None or the
    low-precision copy, written last. The state is that of torch.optim.AdamW (exp_avg, exp_avg_sq, step).
    ValueError for lists of different length, shapes, devices, layouts, step < 1 or a teacher without
    momentum; TypeError for dtypes.
    """
    count = len(parameters)
    teacher, student_copies, teacher_copies = (
        [None] * count if given is None else given for given in (teacher, student_copies, teacher_copies)
    )
    lists = {
        "gradients": gradients,
        "exp_avg": exp_avg,
        "exp_avg_sq": exp_avg_sq,
        "weight_decay": weight_decay,
        "teacher": teacher,
        "student_copies": student_copies,
        "teacher_copies": teacher_copies,
    }
    _validate_scalars(count, lists, step, momentum)
    for i in range(count):
        _validate_tensor(i, parameters[i], {name: entries[i] for name, entries in lists.items()})
    device = parameters[0].device
    if isinstance(grad_scale, Tensor):
        require_device(OP, device, grad_scale=grad_scale)
        if grad_scale.numel() != 1:
            raise ValueError(f"adamw_ema: grad_scale must have one element, not {list(grad_scale.shape)}")
        grad_scale = grad_scale.reshape(())
    RUN[choose(OP, impl, device, SUPPORTED)](
        parameters, gradients, exp_avg, exp_avg_sq, step, lr, betas, eps, weight_decay, grad_scale,
        teacher, momentum, student_copies, teacher_copies,
    )  # fmt: skip


def _validate_scalars(count: int, lists: dict[str, Sequence], step: int, momentum: float | None) -> None:
    if count == 0:
        raise ValueError("adamw_ema: no parameters")
    for name, entries in lists.items():
        if len(entries) != count:
            raise ValueError(f"adamw_ema: {name} has {len(entries)} entries for {count} parameters")
    if step < 1:
        raise ValueError(f"adamw_ema: step counts updates from 1, not {step}")
    has_teacher = any(entry is not None for entry in lists["teacher"])
    if has_teacher and (momentum is None or not 0 <= momentum <= 1):
        raise ValueError(f"adamw_ema: a teacher needs a momentum in [0, 1], not {momentum}")


def _validate_tensor(i: int, parameter: Tensor, entries: dict[str, Tensor | float | None]) -> None:
    masters = {name: entries[name] for name in ("exp_avg", "exp_avg_sq", "teacher")} | {"parameters": parameter}
    copies = {name: entries[name] for name in ("gradients", "student_copies", "teacher_copies")}
    require_dtype(OP, f"parameters[{i}]", parameter, torch.float32, torch.float64)
    for name, tensor in (masters | copies).items():
        if tensor is None:
            continue
        require_shape(OP, f"{name}[{i}]", tensor, parameter.shape, "its parameter's shape")
        require_device(OP, parameter.device, **{f"{name}[{i}]": tensor})
        if name in masters:
            require_dtype(OP, f"{name}[{i}]", tensor, parameter.dtype)
            if not tensor.is_contiguous():
                raise ValueError(f"adamw_ema: {name}[{i}] must be contiguous")
        else:
            require_floating(OP, **{f"{name}[{i}]": tensor})
    if entries["teacher_copies"] is not None and entries["teacher"] is None:
        raise ValueError(f"adamw_ema: teacher_copies[{i}] has no teacher")
