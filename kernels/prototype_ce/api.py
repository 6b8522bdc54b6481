"""prototype_ce: DINO's cross entropy between the teacher's and the student's crops over the prototypes."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_dtype, require_floating, require_shape
from ..impl import Impl, choose_for_dtype

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
DTYPES = {
    Impl.NATIVE: (torch.bfloat16, torch.float32),
    Impl.TRITON: (torch.bfloat16, torch.float16, torch.float32),
}


def prototype_ce(
    student: Tensor,  # [V, B, D], crops-major; crops 0 .. G - 1 are the teacher's
    teacher: Tensor,  # [G, B, D]
    prototypes: Tensor,  # [P, D], directions: their lengths do not matter
    teacher_prototypes: Tensor,  # [P, D]
    centre: Tensor,  # [P]
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.04,  # or a tensor [], so that a CUDA graph can change it
    impl: Impl | str = "auto",
) -> tuple[Tensor, Tensor]:  # loss scalar in nats and batch centre [P], both fp32 (fp64 for fp64 features)
    """Mean cross entropy over all pairs of a teacher's crop and another crop of the student, and the mean of the
    teacher's logits before the centre.

    Rows and prototypes need not be normalised. Differentiable in student and prototypes; the batch centre carries
    no gradient. The moving average of the centre and its mean over ranks are the caller's. ValueError for a shape, a
    device, no pair or a temperature <= 0 (one in a tensor is not read); TypeError for a dtype: all take bf16 and fp32
    features; fp16 all but native; fp64 torch and reference.
    """
    _validate(student, teacher, prototypes, teacher_prototypes, centre)
    _validate_temperatures(student, student_temperature, teacher_temperature)
    if not isinstance(teacher_temperature, Tensor):
        compute = torch.promote_types(student.dtype, torch.float32)
        teacher_temperature = student.new_full((), teacher_temperature, dtype=compute)
    run = _implementation(choose_for_dtype("prototype_ce", impl, student, SUPPORTED, DTYPES))
    return run(student, teacher, prototypes, teacher_prototypes, centre, student_temperature, teacher_temperature)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            from .native import prototype_ce as run
        case Impl.TRITON:
            from .triton import prototype_ce as run
        case Impl.TORCH:
            from .stock import prototype_ce as run
        case _:
            from .reference import prototype_ce as run
    return run


def _validate(student: Tensor, teacher: Tensor, prototypes: Tensor, teacher_prototypes: Tensor, centre: Tensor) -> None:
    op = "prototype_ce"
    require_dims(op, "student", student, 3, "[V, B, D]")
    require_dims(op, "teacher", teacher, 3, "[G, B, D]")
    require_dims(op, "prototypes", prototypes, 2, "[P, D]")
    views, batch, width = student.shape
    if student.numel() == 0 or teacher.shape[0] == 0 or prototypes.shape[0] == 0 or (views, len(teacher)) == (1, 1):
        raise ValueError(
            f"prototype_ce: no pair of crops, or no prototypes, in student {list(student.shape)}, "
            f"teacher {list(teacher.shape)} and prototypes {list(prototypes.shape)}"
        )
    require_shape(op, "teacher", teacher, (len(teacher), batch, width), "[G, B, D]")
    require_shape(op, "prototypes", prototypes, (len(prototypes), width), "[P, D]")
    require_shape(op, "teacher_prototypes", teacher_prototypes, prototypes.shape, "[P, D]")
    require_shape(op, "centre", centre, (len(prototypes),), "[P]")
    require_floating(op, student=student, prototypes=prototypes, centre=centre)
    require_dtype(op, "teacher", teacher, student.dtype)
    require_dtype(op, "teacher_prototypes", teacher_prototypes, prototypes.dtype)
    require_device(op, student.device, teacher=teacher, prototypes=prototypes)
    require_device(op, student.device, teacher_prototypes=teacher_prototypes, centre=centre)


def _validate_temperatures(student: Tensor, student_temperature: float, teacher_temperature: float | Tensor) -> None:
    if not student_temperature > 0:
        raise ValueError(f"prototype_ce: student_temperature must be above 0, not {student_temperature}")
    if isinstance(teacher_temperature, Tensor):
        require_shape("prototype_ce", "teacher_temperature", teacher_temperature, (), "a float or []")
        require_floating("prototype_ce", teacher_temperature=teacher_temperature)
        require_device("prototype_ce", student.device, teacher_temperature=teacher_temperature)
    elif not teacher_temperature > 0:
        raise ValueError(f"prototype_ce: teacher_temperature must be above 0, not {teacher_temperature}")
