"""The registered op misplace::prototype_ce; importing misplace.kernels._C adds its kernel (csrc/).

isa names vector instructions ("plain", "avx2", "avx512", "avx512_bf16"); "" takes the best.
"""

from functools import partial

import torch
from torch import Tensor

from .autograd import differentiable, empty_results

DTYPES = (torch.bfloat16, torch.float32)

_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "prototype_ce(Tensor student, Tensor teacher, Tensor prototypes, Tensor teacher_prototypes, Tensor centre, "
    "Tensor teacher_temperature, float student_temperature, bool of_student, bool of_prototypes, str isa) "
    "-> (Tensor loss, Tensor batch_centre, Tensor d_student, Tensor d_prototypes)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define("prototype_ce_path() -> str")


@torch.library.register_fake("misplace::prototype_ce", lib=_library)
def _fake(
    student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature, student_temperature,
    of_student, of_prototypes, isa,
):  # fmt: skip
    return tuple(empty_results(student, prototypes, of_student, of_prototypes))


def cpu_path() -> str:
    """The instruction set that the CPU kernel takes here."""
    return torch.ops.misplace.prototype_ce_path()


def _compute(*inputs, isa: str):
    return torch.ops.misplace.prototype_ce(*inputs, isa)


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor,
    *,
    isa: str = "",
) -> tuple[Tensor, Tensor]:
    inputs = (student, teacher, prototypes, teacher_prototypes, centre, student_temperature, teacher_temperature)
    return differentiable(partial(_compute, isa=isa), *inputs)
