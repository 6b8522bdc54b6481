"""adamw_ema: AdamW, the EMA teacher and the low-precision copies of both, in one pass over memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import require_device, require_dtype, require_shape
from ..impl import Impl, choose
from .tensors import GRADIENT_DTYPES, OP, SCALAR_DTYPES, AdamWTensors, Scalars

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.NATIVE, Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
DOUBLE = {device: (Impl.TORCH, Impl.REFERENCE) for device in SUPPORTED}


def adamw_ema(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    step: int | Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: Sequence[float],
    decay_scale: float | Tensor = 1.0,
    grad_scale: float | Tensor = 1.0,
    teacher: Sequence[Tensor | None] | None = None,
    momentum: float | Tensor | None = None,
    found_inf: float | Tensor = 0.0,
    student_copies: Sequence[Tensor | None] | None = None,
    teacher_copies: Sequence[Tensor | None] | None = None,
    impl: Impl | str = "auto",
) -> None:
    """One optimiser step, in place, on lists with one entry per parameter tensor: see AdamWTensors and update."""
    tensors = AdamWTensors(parameters, exp_avg, exp_avg_sq, weight_decay, teacher, student_copies, teacher_copies)
    update(
        tensors, gradients, step=step, lr=lr, betas=betas, eps=eps, decay_scale=decay_scale,
        grad_scale=grad_scale, momentum=momentum, found_inf=found_inf, impl=impl,
    )  # fmt: skip


@torch.no_grad()
def update(
    tensors: AdamWTensors,
    gradients: Sequence[Tensor | None],
    *,
    step: int | Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    decay_scale: float | Tensor = 1.0,
    grad_scale: float | Tensor = 1.0,
    momentum: float | Tensor | None = None,
    found_inf: float | Tensor = 0.0,
    impl: Impl | str = "auto",
) -> None:
    """One optimiser step, in place, on tensors that were validated once; reference.py is the specification.

    gradients: one per parameter, fp32, bf16 or fp16, undefined afterwards; None leaves its parameter, moments,
    teacher and copies as they are. step: the number of this update, from 1. decay_scale: multiplies every
    weight_decay (a schedule). grad_scale: multiplies every gradient (unscaling and clipping). momentum: of the
    teacher in this call, which follows the parameters that this call has updated; the copies are written last.
    The state is that of torch.optim.AdamW (exp_avg, exp_avg_sq, step). found_inf: where it is not 0, nothing is
    written (the name is torch's): a gradient that is not finite never reaches the weights.

    Which momentum makes which method: DINO averages after its step t, with m(t): pass m(t). MoCo v3 averages at
    the start of step t + 1, before the keys, with m(t + 1), and nothing changes the student in between: pass
    m(t + 1) to step t, with a teacher that starts as a copy of the student.

    step, lr, decay_scale, grad_scale, momentum and found_inf may be tensors of one element (fp32, fp64, int64) on the
    device: native and triton read them there, so that a CUDA graph can be captured and replayed with new values;
    the other implementations wait for them. fp64 parameters: reference and torch only.

    ValueError for gradients of another shape or device, step < 1, a teacher without momentum or with one outside
    [0, 1] (a number; a tensor is trusted); TypeError for dtypes.
    """
    tensors.require_length("gradients", gradients)
    for i, (gradient, parameter) in enumerate(zip(gradients, tensors.parameters)):
        if gradient is not None:
            name = f"gradients[{i}]"
            require_shape(OP, name, gradient, parameter.shape, "its parameter's shape")
            require_device(OP, tensors.device, **{name: gradient})
            require_dtype(OP, name, gradient, *GRADIENT_DTYPES, tensors.dtype)
    if not isinstance(found_inf, Tensor) and found_inf:
        return
    scalars = _scalars(tensors, step, lr, decay_scale, grad_scale, momentum, found_inf)
    supported = DOUBLE if tensors.dtype == torch.float64 else SUPPORTED
    run = _implementation(choose(OP, impl, tensors.device, supported))
    run(tensors, [g if g is None else g.contiguous() for g in gradients], scalars, betas, eps)


def _scalars(tensors: AdamWTensors, step, lr, decay_scale, grad_scale, momentum, found_inf) -> Scalars:
    if not isinstance(step, Tensor) and step < 1:
        raise ValueError(f"adamw_ema: step counts updates from 1, not {step}")
    if not isinstance(momentum, Tensor) and tensors.has_teacher and (momentum is None or not 0 <= momentum <= 1):
        raise ValueError(f"adamw_ema: a teacher needs a momentum in [0, 1], not {momentum}")
    scalars = Scalars(step, lr, decay_scale, grad_scale, 1.0 if momentum is None else momentum, found_inf)
    for name, value in scalars._asdict().items():
        if isinstance(value, Tensor):
            require_device(OP, tensors.device, **{name: value})
            require_dtype(OP, name, value, *SCALAR_DTYPES)
            if value.numel() != 1:
                raise ValueError(f"adamw_ema: {name} must have one element, not {list(value.shape)}")
    return scalars


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import adamw_ema_native as run
        case Impl.TRITON:
            from .triton import adamw_ema_triton as run
        case Impl.TORCH:
            from .stock import adamw_ema_stock as run
        case _:
            from .reference import adamw_ema_reference as run
    return run
