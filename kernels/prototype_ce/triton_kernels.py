"""The jit functions of prototype_ce. Exponents are of 2; a row's crop is row // batch, its image row % batch."""

import os

import triton
import triton.language as tl

# the interpreter multiplies the bits of a bf16, not its value, and cuts off where a GPU rounds to one
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2_E = tl.constexpr(1.4426950408889634)
SHORTEST = tl.constexpr(1e-12)


@triton.jit
def _multiply_add(a, b, sums):
    """sums + a . b in fp32: fp32 stays fp32 (no TF32), a product of two bf16 is exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _narrow(x, dtype: tl.constexpr):
    """fp32 -> dtype, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _load_rows(ptr, row, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """[rows, BLOCK], 0 past the last row and the last column."""
    column = tl.arange(0, BLOCK)
    mask = (row < count)[:, None] & (column < WIDTH)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)


@triton.jit
def _normalise_backward(d_unit, rows, inverse):
    """By the rows, where d_unit is the gradient by rows * inverse and inverse = 1 / max(length, SHORTEST)."""
    unit = rows * inverse[:, None]
    along = tl.where(inverse < 1.0 / SHORTEST, tl.sum(d_unit * unit, 1), 0.0)
    return (d_unit - along[:, None] * unit) * inverse[:, None]


@triton.jit(do_not_specialize=["count"])
def normalise_kernel(
    rows_ptr,  # [N, D]
    unit_ptr,  # [N, D]
    inverse_ptr,  # fp32 [N], 1 / length
    count,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    rows = _load_rows(rows_ptr, row, count, WIDTH, BLOCK).to(tl.float32)
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(rows * rows, 1)), SHORTEST)
    mask = (row < count)[:, None] & (column < WIDTH)[None, :]
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(unit_ptr + place, _narrow(rows * inverse[:, None], unit_ptr.dtype.element_ty), mask=mask)
    tl.store(inverse_ptr + row, inverse, mask=row < count)


@triton.jit(do_not_specialize=["count", "num_prototypes", "tiles_per_split"])
def rows_kernel(
    rows_ptr,  # [N, D], unit rows of student or teacher
    prototypes_ptr,  # [P, D], their unit prototypes
    values_ptr,  # [P, D], the student's unit prototypes
    centre_ptr,  # fp32 [P]
    temperature_ptr,  # fp32 [], of the teacher
    largest_ptr,  # fp32 [splits, N]
    total_ptr,  # fp32 [splits, N], of 2^(logit - largest)
    weight_ptr,  # fp32 [splits, N], the same of those rounded for the product: weights of the mean add up to 1
    sums_ptr,  # fp32 [splits, N, D], of values under 2^(logit - largest)
    columns_ptr,  # fp32 [blocks of rows, P], sums of the logits before the centre
    count,
    num_prototypes,
    tiles_per_split,
    scale,  # log2(e) over the student's temperature
    TEACHER: tl.constexpr,
    SUMS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    block, split = tl.program_id(0), tl.program_id(1)
    row, column = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    rows = _load_rows(rows_ptr, row, count, WIDTH, BLOCK)
    if TEACHER:
        scale = LOG2_E / tl.load(temperature_ptr)
    largest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    weight, sums = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    last = tl.minimum((split + 1) * tiles_per_split * TILE, num_prototypes)
    for first in range(split * tiles_per_split * TILE, last, TILE):
        place = first + tl.arange(0, TILE)
        w = _load_rows(prototypes_ptr, place, num_prototypes, WIDTH, BLOCK)
        logits = _multiply_add(rows, tl.trans(w), tl.zeros([ROWS, TILE], tl.float32))
        if TEACHER:
            tl.store(columns_ptr + block * num_prototypes + place, tl.sum(logits, 0), mask=place < num_prototypes)
            logits -= tl.load(centre_ptr + place, mask=place < num_prototypes, other=0.0)[None, :]
        logits = tl.where((place < num_prototypes)[None, :], logits * scale, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
        kept = tl.exp2(before - largest)
        powers = tl.exp2(logits - largest[:, None])
        total = total * kept + tl.sum(powers, 1)
        if SUMS:
            if TEACHER:
                w = _load_rows(values_ptr, place, num_prototypes, WIDTH, BLOCK)
            rounded = _narrow(powers, w.dtype)
            weight = weight * kept + tl.sum(rounded.to(tl.float32), 1)
            sums = _multiply_add(rounded, w, sums * kept[:, None])
    to = split * count + row
    tl.store(largest_ptr + to, largest, mask=row < count)
    tl.store(total_ptr + to, total, mask=row < count)
    if SUMS:
        tl.store(weight_ptr + to, weight, mask=row < count)
        mask = (row < count)[:, None] & (column < WIDTH)[None, :]
        tl.store(sums_ptr + to.to(tl.int64)[:, None] * WIDTH + column[None, :], sums, mask=mask)


@triton.jit
def _merge(
    largest_ptr, total_ptr, weight_ptr, sums_ptr, row, count, splits,
    SUMS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One row over all splits: its largest logit, log2 of its total over that, and the mean of the values."""
    split, column = tl.arange(0, SPLITS), tl.arange(0, BLOCK)
    largest = tl.load(largest_ptr + split * count + row, mask=split < splits, other=float("-inf"))
    most = tl.max(largest, 0)
    share = tl.exp2(largest - most)
    total = tl.sum(share * tl.load(total_ptr + split * count + row, mask=split < splits, other=0.0), 0)
    mean = tl.zeros([BLOCK], tl.float32)
    if SUMS:
        weight = tl.sum(share * tl.load(weight_ptr + split * count + row, mask=split < splits, other=0.0), 0)
        for each in range(splits):
            part = tl.exp2(tl.load(largest_ptr + each * count + row) - most)
            place = (each * count + row).to(tl.int64) * WIDTH + column
            mean += part * tl.load(sums_ptr + place, mask=column < WIDTH, other=0.0)
        mean = mean / weight
    return most, tl.log2(total), mean


@triton.jit(do_not_specialize=["teacher_rows", "splits", "views", "teacher_views", "batch"])
def finish_teacher_kernel(
    largest_ptr,  # fp32 [splits, G B]
    total_ptr,
    weight_ptr,
    sums_ptr,
    student_ptr,  # [V B, D], unit rows
    log_sum_ptr,  # fp32 [2, G B]: largest logit, log2 of the sum over that
    mean_ptr,  # fp32 [G B, D], mean of the student's unit prototypes under q
    partners_ptr,  # [G B, D], sum of the unit rows that are compared with this one
    teacher_rows,
    splits,
    views,
    teacher_views,
    batch,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    most, log_total, mean = _merge(
        largest_ptr, total_ptr, weight_ptr, sums_ptr, row, teacher_rows, splits, True, WIDTH, BLOCK, SPLITS
    )
    tl.store(log_sum_ptr + row, most)
    tl.store(log_sum_ptr + teacher_rows + row, log_total)
    tl.store(mean_ptr + row * WIDTH + column, mean, mask=column < WIDTH)
    partners = tl.zeros([BLOCK], tl.float32)
    for view in range(views):
        place = (view * batch + row % batch) * WIDTH + column
        unit = tl.load(student_ptr + place, mask=column < WIDTH, other=0.0).to(tl.float32)
        partners += tl.where(view == row // batch, 0.0, unit)
    tl.store(partners_ptr + row * WIDTH + column, _narrow(partners, partners_ptr.dtype.element_ty), mask=column < WIDTH)


@triton.jit(do_not_specialize=["rows", "splits", "teacher_views", "batch"])
def finish_student_kernel(
    largest_ptr,  # fp32 [splits, V B]
    total_ptr,
    weight_ptr,
    sums_ptr,
    unit_ptr,  # [V B, D], unit rows
    student_ptr,  # [V B, D]
    inverse_ptr,  # fp32 [V B]
    mean_ptr,  # fp32 [G B, D]
    log_sum_ptr,  # fp32 [2, V B]
    loss_ptr,  # fp32 [V B], sum over this row's pairs
    d_student_ptr,  # [V B, D]
    rows,
    splits,
    teacher_views,
    batch,
    scale,  # log2(e) over the student's temperature
    gradient_scale,
    GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < WIDTH
    most, log_total, mean = _merge(
        largest_ptr, total_ptr, weight_ptr, sums_ptr, row, rows, splits, GRADIENT, WIDTH, BLOCK, SPLITS
    )
    tl.store(log_sum_ptr + row, most)
    tl.store(log_sum_ptr + rows + row, log_total)
    view = row // batch
    of_teacher = tl.zeros([BLOCK], tl.float32)
    for other in range(teacher_views):
        place = (other * batch + row % batch) * WIDTH + column
        of_teacher += tl.where(other == view, 0.0, tl.load(mean_ptr + place, mask=inside, other=0.0))
    compared = tl.where(view < teacher_views, teacher_views - 1, teacher_views).to(tl.float32)
    unit = tl.load(unit_ptr + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    in_powers_of_2 = compared * most - tl.sum(unit * of_teacher, 0) * scale + compared * log_total
    tl.store(loss_ptr + row, in_powers_of_2 / LOG2_E)
    if GRADIENT:
        student = tl.load(student_ptr + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr + row)
        d_unit = (compared * mean - of_teacher) * gradient_scale
        along = tl.where(inverse < 1.0 / SHORTEST, tl.sum(d_unit * student, 0) * inverse, 0.0)
        gradient = (d_unit - along * student * inverse) * inverse
        tl.store(d_student_ptr + row * WIDTH + column, _narrow(gradient, d_student_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _probabilities(w, rows, row, count, log_sum_ptr, shift, scale, ROWS: tl.constexpr, TILE: tl.constexpr):
    """[TILE, ROWS]: prototypes down, rows across; 0 for the rows that there are not."""
    logits = _multiply_add(w, tl.trans(rows), tl.zeros([TILE, ROWS], tl.float32))
    most = tl.load(log_sum_ptr + row, mask=row < count, other=0.0)
    log_total = tl.load(log_sum_ptr + count + row, mask=row < count, other=float("inf"))
    return tl.exp2((logits - shift[:, None]) * scale - most[None, :] - log_total[None, :])


@triton.jit(do_not_specialize=["rows", "teacher_rows", "num_prototypes", "teacher_views", "batch"])
def prototypes_kernel(
    student_ptr,  # [V B, D], unit rows
    teacher_ptr,  # [G B, D], unit rows
    partners_ptr,  # [G B, D]
    unit_ptr,  # [P, D], the student's unit prototypes
    teacher_unit_ptr,  # [P, D]
    prototypes_ptr,  # [P, D]
    inverse_ptr,  # fp32 [P]
    centre_ptr,  # fp32 [P]
    temperature_ptr,  # fp32 [], of the teacher
    log_sum_ptr,  # fp32 [2, V B]
    teacher_log_sum_ptr,  # fp32 [2, G B]
    d_prototypes_ptr,  # [P, D]
    rows,
    teacher_rows,
    num_prototypes,
    teacher_views,
    batch,
    scale,
    gradient_scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    place, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK)
    w = _load_rows(unit_ptr, place, num_prototypes, WIDTH, BLOCK)
    no_centre = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, BLOCK], tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        z = _load_rows(student_ptr, row, rows, WIDTH, BLOCK)
        p = _probabilities(w, z, row, rows, log_sum_ptr, no_centre, scale, ROWS, TILE)
        compared = tl.where(row // batch < teacher_views, teacher_views - 1, teacher_views).to(tl.float32)
        sums = _multiply_add(_narrow(p * compared[None, :], z.dtype), z, sums)
    w = _load_rows(teacher_unit_ptr, place, num_prototypes, WIDTH, BLOCK)
    centre = tl.load(centre_ptr + place, mask=place < num_prototypes, other=0.0)
    teacher_scale = LOG2_E / tl.load(temperature_ptr)
    for first in range(0, teacher_rows, ROWS):
        row = first + tl.arange(0, ROWS)
        t = _load_rows(teacher_ptr, row, teacher_rows, WIDTH, BLOCK)
        q = _probabilities(w, t, row, teacher_rows, teacher_log_sum_ptr, centre, teacher_scale, ROWS, TILE)
        partners = _load_rows(partners_ptr, row, teacher_rows, WIDTH, BLOCK)
        sums = _multiply_add(_narrow(-q, partners.dtype), partners, sums)
    v = _load_rows(prototypes_ptr, place, num_prototypes, WIDTH, BLOCK).to(tl.float32)
    inverse = tl.load(inverse_ptr + place, mask=place < num_prototypes, other=0.0)
    gradient = _normalise_backward(sums * gradient_scale, v, inverse)
    mask = (place < num_prototypes)[:, None] & (column < WIDTH)[None, :]
    to = d_prototypes_ptr + place.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(to, _narrow(gradient, d_prototypes_ptr.dtype.element_ty), mask=mask)
