"""DINO (arXiv 2104.14294): a student's crops sort themselves among prototypes as an EMA teacher sorts whole views."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from misplace import kernels

from ..distributed import mean_over_ranks
from ..models import VisionTransformer
from ..models.heads import gelu_mlp
from ..optim import half_cosine
from .base import Framework, Student


@dataclass(frozen=True)
class DinoConfig:
    """DINO. The defaults are those published for ViT-S/16 [S], without its drop path [O]."""

    num_prototypes: int = 65_536
    """Classes that crops are sorted into."""
    hidden_width: int = 2048
    """Width of the head's two hidden layers."""
    bottleneck_width: int = 256
    """Width of the vectors that are compared with the prototypes."""
    batch_norm: bool = False
    """BatchNorm in the head's hidden layers."""
    student_temperature: float = 0.1
    """Softmax temperature of the student."""
    teacher_temperature: float = 0.04
    """Softmax temperature of the teacher at the start."""
    final_teacher_temperature: float = 0.07
    """Softmax temperature of the teacher once it is warm."""
    warm_epochs: int = 30
    """Epochs in which the teacher's temperature rises, in equal steps."""
    held_epochs: int = 1
    """Epochs at the start in which the prototypes stay as they are."""
    centre_momentum: float = 0.9
    """EMA momentum of the centre of the teacher's logits."""
    momentum: float = 0.996
    """EMA momentum of the teacher at the start; rises to 1 by half a cosine."""


class Prototypes(nn.Module):
    """The last layer, weight-normalised with its gain frozen at 1: only the rows' directions count. [S]"""

    def __init__(self, num_prototypes: int, width: int):
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(num_prototypes, width).uniform_(-bound, bound))


class Dino(Framework):
    """loss = mean over pairs (teacher view u, student crop v != u) of CE(teacher's classes, student's). [S]

    teacher: softmax((g_u - centre) / tau_t), student: softmax(s_v / tau_s); the centre is an EMA of the mean of g
    over views, images and ranks, moved after the loss.
    """

    num_views = 2
    takes_local = True

    def __init__(self, config: DinoConfig, encoder: VisionTransformer):
        super().__init__()
        self.config = config
        hidden, bottleneck = config.hidden_width, config.bottleneck_width
        self.head = gelu_mlp((encoder.width, hidden, hidden, bottleneck), batch_norm=config.batch_norm)
        self.prototypes = Prototypes(config.num_prototypes, bottleneck)
        students = {"encoder": encoder, "head": self.head, "prototypes": self.prototypes}
        self.teacher = nn.ModuleDict({name: copy.deepcopy(module) for name, module in students.items()}).requires_grad_(
            False
        )
        self.register_buffer("centre", torch.zeros(config.num_prototypes))
        self.register_buffer("batch_centre", torch.zeros(config.num_prototypes), persistent=False)

    def losses(
        self, student: Student, views: tuple[Tensor, ...], schedule: Mapping[str, float | Tensor]
    ) -> dict[str, Tensor]:
        class_tokens = student.class_tokens
        bottleneck = self.head(torch.cat(class_tokens)).unflatten(0, (len(class_tokens), -1))
        with torch.no_grad():
            seen = self.teacher["encoder"].class_token(torch.cat(views))
            targets = self.teacher["head"](seen).unflatten(0, (len(views), -1))
        loss, batch_centre = kernels.prototype_ce(
            bottleneck,
            targets,
            self.prototypes.weight,
            self.teacher["prototypes"].weight,
            self.centre,
            student_temperature=self.config.student_temperature,
            teacher_temperature=schedule["teacher_temperature"],
            impl=self.impls["prototype_ce"],
        )
        self.batch_centre.copy_(mean_over_ranks(batch_centre))
        return {"self_distillation": loss}

    def schedule(self, epoch: int) -> dict[str, float]:
        """Constant within an epoch. [S]"""
        first, last, steps = (
            self.config.teacher_temperature,
            self.config.final_teacher_temperature,
            self.config.warm_epochs - 1,
        )
        share = min(epoch / steps, 1.0) if steps > 0 else 1.0
        return {"teacher_temperature": first + share * (last - first)}

    @torch.no_grad()
    def finish_step(self, found_inf: Tensor | None = None) -> None:
        weight = 1 - self.config.centre_momentum
        moved = self.centre.lerp(self.batch_centre, weight)
        self.centre.copy_(moved if found_inf is None else torch.where(found_inf == 0, moved, self.centre))

    def teacher_pairs(self, encoder: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        for student, teacher in ((encoder, "encoder"), (self.head, "head"), (self.prototypes, "prototypes")):
            yield from zip(student.parameters(), self.teacher[teacher].parameters())

    def momentum(self, progress: float, following: float) -> float:
        """Averaged after this step. [S]"""
        return half_cosine(progress, self.config.momentum, 1.0)

    def late_parameters(self) -> Iterator[nn.Parameter]:
        yield self.prototypes.weight

    def holds_late(self, epoch: int) -> bool:
        return epoch < self.config.held_epochs

    def collapse_loss(self, batch_size: int) -> float:
        return math.log(self.config.num_prototypes)
