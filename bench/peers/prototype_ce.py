"""The loss as DINO users run it: the normalised bottleneck, a weight-normalised linear layer, and a loop over pairs.

In the dtype of the features, as under autocast to bf16, with the softmaxes in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def eager_prototype_ce(
    student: Tensor,  # [V, B, D]
    prototypes: Tensor,  # [P, D], the direction of the weight norm
    teacher: Tensor,  # [G, B, D]
    teacher_prototypes: Tensor,  # [P, D]
    centre: Tensor,  # [P]
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> tuple[Tensor, Tensor]:  # loss scalar, batch centre [P]
    """F.normalize -> weight norm with a gain of 1 -> linear -> softmax and log_softmax, pair by pair."""
    with torch.no_grad():
        teacher_logits = _last_layer(teacher, teacher_prototypes)
        q = F.softmax((teacher_logits - centre) / teacher_temperature, dim=-1, dtype=torch.float32)
        batch_centre = teacher_logits.float().mean(dim=(0, 1))
    logits = _last_layer(student, prototypes) / student_temperature
    total, pairs = 0, 0
    for u, of_teacher in enumerate(q):
        for v, of_student in enumerate(logits):
            if u != v:
                log_p = F.log_softmax(of_student, dim=-1, dtype=torch.float32)
                total = total + torch.sum(-of_teacher * log_p, dim=-1).mean()
                pairs += 1
    return total / pairs, batch_centre


def _last_layer(features: Tensor, prototypes: Tensor) -> Tensor:
    gain = prototypes.new_ones(len(prototypes), 1)
    weight = torch._weight_norm(prototypes, gain, 0)
    return F.linear(F.normalize(features, dim=-1), weight.to(features.dtype))


def forward_backward(function, student: Tensor, prototypes: Tensor, *constants: Tensor) -> tuple[Tensor, ...]:
    """loss, batch centre and the gradients of student and prototypes."""
    loss, batch_centre = function(student, prototypes, *constants)
    return loss.detach(), batch_centre, *torch.autograd.grad(loss, (student, prototypes))
