"""prototype_ce by PyTorch's own operators, a tile of prototypes at a time, with the gradient by hand.

Two passes over the prototypes: the first finds every row's log-sum-exp, the second makes the tile's logits again
and has its share of the loss and of the gradients. With n[v] teacher's crops to compare crop v with and
Q[v] = sum of q[u] over u != v, the loss is the mean of Q[v] . (lse[v] - s[v]) over the pairs, and its gradient by
s[v] is n[v] softmax(s[v]) - Q[v]. Nothing of rows times prototypes is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import compute_dtype, differentiable, empty_results, num_pairs

TILE = 2048  # prototypes
EPS = 1e-12


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    inputs = (student, teacher, prototypes, teacher_prototypes, centre, student_temperature, teacher_temperature)
    return differentiable(_compute, *inputs)


def _compute(
    student, teacher, prototypes, teacher_prototypes, centre, teacher_temperature, student_temperature,
    of_student, of_prototypes,
):  # fmt: skip
    compute, dtype = compute_dtype(student), student.dtype
    out = empty_results(student, prototypes, of_student, of_prototypes)
    views, batch = student.shape[:2]
    z, t = (_normalised(rows.flatten(0, 1), compute, dtype) for rows in (student, teacher))
    centre = centre.to(compute)

    def tiles():
        for first in range(0, len(prototypes), TILE):
            here = slice(first, first + TILE)
            w, teacher_w = (_normalised(each[here], compute, dtype) for each in (prototypes, teacher_prototypes))
            yield here, w, (z @ w.T).to(compute) / student_temperature, (t @ teacher_w.T).to(compute)

    lse, teacher_lse = (x.new_full((len(x),), -torch.inf, dtype=compute) for x in (z, t))
    for here, _, logits, teacher_logits in tiles():
        out.batch_centre[here] = teacher_logits.mean(dim=0)
        scores = (teacher_logits - centre[here]) / teacher_temperature
        lse = torch.logaddexp(lse, logits.logsumexp(dim=-1))
        teacher_lse = torch.logaddexp(teacher_lse, scores.logsumexp(dim=-1))

    scale = 1 / (num_pairs(views, len(teacher)) * batch)
    # [V, G]: 1 where the crops differ
    others = 1 - torch.eye(views, len(teacher), dtype=compute, device=student.device)
    compared = others.sum(dim=1).repeat_interleave(batch)[:, None]
    total, dz = lse.new_zeros(()), z.new_zeros(z.shape, dtype=compute)
    for here, w, logits, teacher_logits in tiles():
        q = ((teacher_logits - centre[here]) / teacher_temperature - teacher_lse[:, None]).exp()
        of_others = (others @ q.view(len(teacher), -1)).view(logits.shape)
        total = total + (of_others * (lse[:, None] - logits)).sum()
        if of_student or of_prototypes:
            d_logits = (compared * (logits - lse[:, None]).exp() - of_others).to(dtype)
            if of_student:
                dz += d_logits @ w
            if of_prototypes:
                dw = (d_logits.T @ z).to(compute) * (scale / student_temperature)
                out.d_prototypes[here] = _normalise_backward(dw, prototypes[here].to(compute))
    out.loss.copy_(total * scale)
    if of_student:
        rows = student.flatten(0, 1).to(compute)
        out.d_student.copy_(_normalise_backward(dz * (scale / student_temperature), rows).view(student.shape))
    return tuple(out)


def _normalised(rows: Tensor, compute: torch.dtype, dtype: torch.dtype) -> Tensor:
    return F.normalize(rows.to(compute), dim=-1, eps=EPS).to(dtype)


def _normalise_backward(d_unit: Tensor, rows: Tensor) -> Tensor:
    """The gradient by rows, where d_unit is that by rows / max(|rows|, EPS)."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit = rows / length.clamp_min(EPS)
    along = (d_unit * unit).sum(dim=-1, keepdim=True) * (length > EPS)
    return (d_unit - along * unit) / length.clamp_min(EPS)
