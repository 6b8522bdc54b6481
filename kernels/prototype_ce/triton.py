"""prototype_ce on the GPU: rows attend to the prototypes, then prototypes to the rows.

Formula         with z, t unit rows and w, w' unit prototypes of student and teacher, q the teacher's probabilities and
                e[u] = sum_p q[u, p] w[p], a pair costs lse[v] - z[v] . e[u] / temperature. The gradient by z[v] is
                n[v] softmax(s[v]) w - sum of e[u] over u != v, that by w is softmax^T z - q^T y with y[u] = sum of z[v]
                over v != u.
Bytes moved     both prototypes are read in fp32 and written once as unit rows in the features' dtype (6 D bytes a
                prototype of either in bf16); then those are read from L2 once per block of rows, and the gradient is
                written. Per split of the prototypes 4 D bytes a row.
Operations      2 D a row and prototype: student 4 products, teacher 4.
Saved           the gradients themselves, for a loss of weight 1; backward multiplies where the weight is another.
Against eager   logits, log-softmaxes and probabilities of all pairs, tens of bytes for a row and a prototype, are never
                written: a tile of them lives in registers. One more product of the student's (logits are made twice).

The splits are fixed by the shape and added in their order: a run repeats to the bit.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .autograd import differentiable, empty_results, num_pairs
from .triton_kernels import (
    finish_student_kernel,
    finish_teacher_kernel,
    normalise_kernel,
    prototypes_kernel,
    rows_kernel,
)

MAX_WIDTH = 256
LOG2_E = 1.4426950408889634
MOST_SPLITS = 64
PROGRAMS = 264  # two on each of 132 multiprocessors
NORMALISE = dict(ROWS=16)
NORMALISE_WARPS, FINISH_WARPS = 4, 4


class LaunchSizes(NamedTuple):
    """Rows and prototypes of a tile."""

    rows: int
    tile: int
    num_warps: int
    num_stages: int


# by bytes of a number and the power of 2 that holds the width, up to 128 or 256
LAUNCH = {
    (2, 128): LaunchSizes(64, 64, 4, 3),
    (2, 256): LaunchSizes(64, 64, 8, 2),
    (4, 128): LaunchSizes(16, 16, 4, 1),
    (4, 256): LaunchSizes(16, 32, 8, 1),
}


def block_of(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def launch_sizes(width: int, dtype: torch.dtype) -> LaunchSizes:
    return LAUNCH[dtype.itemsize, max(128, block_of(width))]


def num_splits(rows: int, num_prototypes: int, sizes: LaunchSizes) -> tuple[int, int]:
    """Splits of the prototypes that fill the GPU, none of them empty, and the tiles of one."""
    tiles = triton.cdiv(num_prototypes, sizes.tile)
    wanted = min(MOST_SPLITS, tiles, max(1, PROGRAMS // triton.cdiv(rows, sizes.rows)))
    each = triton.cdiv(tiles, wanted)
    return triton.cdiv(tiles, each), each


class _Units(NamedTuple):
    rows: Tensor  # [N, D], contiguous, as given
    unit: Tensor  # [N, D], in the features' dtype
    inverse: Tensor  # fp32 [N]


def _normalised(rows: Tensor, dtype: torch.dtype) -> _Units:
    rows = rows.flatten(0, -2).contiguous()
    count, width = rows.shape
    out = _Units(rows, rows.new_empty(rows.shape, dtype=dtype), rows.new_empty(count, dtype=torch.float32))
    grid = (triton.cdiv(count, NORMALISE["ROWS"]),)
    normalise_kernel[grid](*out, count, WIDTH=width, BLOCK=block_of(width), **NORMALISE, num_warps=NORMALISE_WARPS)
    return out


def _over_prototypes(
    rows: Tensor, prototypes: Tensor, values: Tensor, centre: Tensor, temperature: Tensor, scale: float,
    *, of_teacher: bool, sums: bool,
):  # fmt: skip
    """What the splits leave of the rows: largest, total, weight, sums; and the sums of the logits of blocks of rows."""
    (count, width), num_prototypes, sizes = rows.shape, len(prototypes), launch_sizes(rows.shape[1], rows.dtype)
    splits, tiles = num_splits(count, num_prototypes, sizes)
    blocks = triton.cdiv(count, sizes.rows)
    largest, total, weight = centre.new_empty(3, splits, count)
    weighted = centre.new_empty((splits, count, width) if sums else 0)
    columns = centre.new_empty((blocks, num_prototypes) if of_teacher else 0)
    rows_kernel[blocks, splits](
        rows, prototypes, values, centre, temperature, largest, total, weight, weighted, columns, count,
        num_prototypes, tiles, scale, TEACHER=of_teacher, SUMS=sums, WIDTH=width, BLOCK=block_of(width),
        ROWS=sizes.rows, TILE=sizes.tile, num_warps=sizes.num_warps, num_stages=sizes.num_stages,
    )  # fmt: skip
    return largest, total, weight, weighted, columns


_library = torch.library.Library("misplace", "FRAGMENT")
_library.define(
    "prototype_ce_triton(Tensor student, Tensor teacher, Tensor prototypes, Tensor teacher_prototypes, Tensor centre, "
    "Tensor teacher_temperature, float student_temperature, bool of_student, bool of_prototypes) "
    "-> (Tensor loss, Tensor batch_centre, Tensor d_student, Tensor d_prototypes)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("misplace::prototype_ce_triton", lib=_library)
def _fake(
    student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature, student_temperature,
    of_student, of_prototypes,
):  # fmt: skip
    return tuple(empty_results(student, prototypes, of_student, of_prototypes))


def _launch(
    student, teacher, prototypes, teacher_prototypes, centre, temperature, student_temperature,
    of_student, of_prototypes,
):  # fmt: skip
    out = empty_results(student, prototypes, of_student, of_prototypes)
    (views, batch, width), teacher_views, dtype = student.shape, len(teacher), student.dtype
    scale = LOG2_E / student_temperature
    share = 1 / (num_pairs(views, teacher_views) * batch)
    centre, temperature = centre.float().contiguous(), temperature.float()
    z, t, w, teacher_w = (_normalised(rows, dtype) for rows in (student, teacher, prototypes, teacher_prototypes))
    rows, teacher_rows = len(z.unit), len(t.unit)

    of_rows = (centre, temperature, scale)
    *left, columns = _over_prototypes(t.unit, teacher_w.unit, w.unit, *of_rows, of_teacher=True, sums=True)
    torch.sum(columns, 0, out=out.batch_centre).div_(teacher_rows)
    teacher_log_sum, mean = centre.new_empty(2, teacher_rows), centre.new_empty(teacher_rows, width)
    partners = torch.empty_like(t.unit)
    blocks = dict(WIDTH=width, BLOCK=block_of(width), num_warps=FINISH_WARPS)
    finish_teacher_kernel[(teacher_rows,)](
        *left, z.unit, teacher_log_sum, mean, partners, teacher_rows, len(left[0]), views, teacher_views, batch,
        SPLITS=MOST_SPLITS, **blocks,
    )  # fmt: skip

    *left, _ = _over_prototypes(z.unit, w.unit, w.unit, *of_rows, of_teacher=False, sums=of_student)
    log_sum, losses = centre.new_empty(2, rows), centre.new_empty(rows)
    gradient_scale = share / student_temperature
    finish_student_kernel[(rows,)](
        *left, z.unit, z.rows, z.inverse, mean, log_sum, losses, out.d_student, rows, len(left[0]), teacher_views,
        batch, scale, gradient_scale, GRADIENT=of_student, SPLITS=MOST_SPLITS, **blocks,
    )  # fmt: skip
    torch.sum(losses, 0, out=out.loss).mul_(share)
    if of_prototypes:
        sizes = launch_sizes(width, dtype)
        prototypes_kernel[(triton.cdiv(len(w.unit), sizes.tile),)](
            z.unit, t.unit, partners, w.unit, teacher_w.unit, w.rows, w.inverse, centre, temperature, log_sum,
            teacher_log_sum, out.d_prototypes, rows, teacher_rows, len(w.unit), teacher_views, batch, scale,
            gradient_scale, WIDTH=width, BLOCK=block_of(width), ROWS=sizes.rows, TILE=sizes.tile,
            num_warps=sizes.num_warps, num_stages=sizes.num_stages,
        )  # fmt: skip
    return tuple(out)


for _key in ("CUDA", "CPU"):  # on the CPU the interpreter; api.py refuses anything else there
    _library.impl("prototype_ce_triton", _launch, _key)


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """ValueError for rows wider than MAX_WIDTH."""
    if student.shape[2] > MAX_WIDTH:
        raise ValueError(f"prototype_ce: impl=triton takes widths up to {MAX_WIDTH}, not {student.shape[2]}")
    inputs = (student, teacher, prototypes, teacher_prototypes, centre, student_temperature, teacher_temperature)
    return differentiable(torch.ops.misplace.prototype_ce_triton, *inputs)
