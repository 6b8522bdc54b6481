"""What the tests of prototype_ce share: its inputs, its oracle from the formula, and plain PyTorch."""

import torch
import torch.nn.functional as F

from .inputs import normal

DTYPES = [torch.float32, torch.bfloat16]
WANTED = ["student", "prototypes"]


def oracle(student, teacher, prototypes, teacher_prototypes, centre, student_temperature=0.1, teacher_temperature=0.04):
    """The formula, a pair of crops and an image at a time."""
    w, teacher_w = (v / v.square().sum(-1, keepdim=True).sqrt() for v in (prototypes, teacher_prototypes))
    losses, teacher_logits = [], []
    for u in range(len(teacher)):
        for b in range(teacher.shape[1]):
            g = teacher_w @ (teacher[u, b] / teacher[u, b].square().sum().sqrt())
            teacher_logits.append(g)
            scores = (g - centre) / teacher_temperature
            q = (scores - scores.max()).exp()
            q = (q / q.sum()).detach()
            for v in range(len(student)):
                if v != u:
                    s = w @ (student[v, b] / student[v, b].square().sum().sqrt()) / student_temperature
                    largest = s.max().detach()
                    log_p = s - largest - (s - largest).exp().sum().log()
                    losses.append(-(q * log_p).sum())
    return torch.stack(losses).mean(), torch.stack(teacher_logits).mean(0).detach()


def eager(student, teacher, prototypes, teacher_prototypes, centre, student_temperature=0.1, teacher_temperature=0.04):
    """Plain PyTorch in the dtype of the features, with softmaxes in fp32, as under autocast."""

    def logits(features, v):
        w = v / v.norm(dim=-1, keepdim=True)
        return F.linear(F.normalize(features, dim=-1), w.to(features.dtype))

    g = logits(teacher, teacher_prototypes).detach().float()
    q = ((g - centre) / teacher_temperature).softmax(-1)
    log_p = (logits(student, prototypes) / student_temperature).float().log_softmax(-1)
    pairs = [(u, v) for u in range(len(q)) for v in range(len(log_p)) if u != v]
    return sum(-(q[u] * log_p[v]).sum(-1).mean() for u, v in pairs) / len(pairs), g.mean((0, 1))


def make(views, global_views, batch, num_prototypes, width, dtype=torch.float32, device="cpu"):
    prototypes = normal(num_prototypes, width, seed=3, device=device)
    return {
        "student": 3 * normal(views, batch, width, seed=1, dtype=dtype, device=device),
        "teacher": normal(global_views, batch, width, seed=2, dtype=dtype, device=device),
        "prototypes": prototypes,
        "teacher_prototypes": 2 * prototypes + normal(num_prototypes, width, seed=4, device=device) / 4,
        "centre": normal(num_prototypes, seed=5, device=device) / 16,
    }
