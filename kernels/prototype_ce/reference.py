"""The specification of prototype_ce, in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype_ce(
    student: Tensor,
    teacher: Tensor,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """s[v, b, p] = z[v, b] . w[p],  z = student / |student|,  w = prototypes / |prototypes|;  g[u, b, p] likewise of
    teacher and teacher_prototypes
    q = softmax_p((g - centre) / teacher_temperature)
    loss = mean over u, v != u and b of -sum_p q[u, b, p] * log_softmax_p(s[v, b] / student_temperature)[p]
    batch centre[p] = mean over u, b of g[u, b, p]

    student [V, B, D], teacher [G, B, D], prototypes and teacher_prototypes [P, D], centre [P] -> (scalar in nats,
    [P] without gradient). A row or a prototype shorter than 1e-12 is divided by 1e-12. Computed and returned in
    promote_types(dtype of student, float32). Collapsed rows (every logit the same) give ln(P).
    Source: [S] DINO (Caron et al. 2021), whose last layer is a weight-normalised linear without bias and with its
    gain frozen at 1. [O] the floor under the length of a prototype, whose weight norm there has none.
    """
    compute = torch.promote_types(student.dtype, torch.float32)
    z, w = (F.normalize(rows.to(compute), dim=-1) for rows in (student, prototypes))
    t, teacher_w = (F.normalize(rows.detach().to(compute), dim=-1) for rows in (teacher, teacher_prototypes))
    teacher_logits = t @ teacher_w.T
    q = ((teacher_logits - centre.detach().to(compute)) / teacher_temperature.detach().to(compute)).softmax(dim=-1)
    log_p = (z @ w.T / student_temperature).log_softmax(dim=-1)
    pairs = [(q[u], log_p[v]) for u in range(len(q)) for v in range(len(log_p)) if u != v]
    loss = sum(-(of_teacher * of_student).sum(dim=-1).mean() for of_teacher, of_student in pairs) / len(pairs)
    return loss, teacher_logits.mean(dim=(0, 1))
