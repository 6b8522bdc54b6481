"""MoCo v3 (arXiv 2104.02057): symmetric InfoNCE between a student and its EMA teacher."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from misplace import kernels

from ..distributed import gather_rows, rank
from ..models import VisionTransformer
from ..models.heads import batch_norm_mlp
from ..optim import half_cosine
from .base import Framework, Student


@dataclass(frozen=True)
class MocoV3Config:
    """MoCo v3. The defaults are the published ones. [S]"""

    temperature: float = 0.2
    """Softmax temperature tau."""
    momentum: float = 0.99
    """EMA momentum at the start; rises to 1 by half a cosine."""
    hidden_width: int = 4096
    """Width of the hidden layers of projector and predictor."""
    output_width: int = 256
    """Width of the compared vectors."""


class MocoV3(Framework):
    """loss = ctr(q1, k2) + ctr(q2, k1), ctr(q, k) = 2 tau mean_i CE(q_i . k_j / tau over j, i). [S]"""

    num_views = 2

    def __init__(self, config: MocoV3Config, encoder: VisionTransformer):
        super().__init__()
        self.config = config
        hidden, out = config.hidden_width, config.output_width
        self.projector = batch_norm_mlp((encoder.width, hidden, hidden, out))
        self.predictor = batch_norm_mlp((out, hidden, out))
        self.teacher = nn.ModuleDict(
            {"encoder": copy.deepcopy(encoder), "projector": copy.deepcopy(self.projector)}
        ).requires_grad_(False)

    def losses(self, student: Student, views: tuple[Tensor, ...], schedule) -> dict[str, Tensor]:
        queries = [self.predictor(self.projector(token)) for token in student.class_tokens]
        keys = self._keys(views)
        return {"contrastive": self._contrast(queries[0], keys[1]) + self._contrast(queries[1], keys[0])}

    @torch.no_grad()
    def _keys(self, views: tuple[Tensor, ...]) -> list[Tensor]:
        """The teacher sees every token at its right place; one trunk pass for all views, BatchNorm per view."""
        class_tokens = self.teacher["encoder"].class_token(torch.cat(views)).chunk(len(views))
        return [self.teacher["projector"](token) for token in class_tokens]

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        tau, keys = self.config.temperature, gather_rows(key)
        first_row = rank() * len(key)
        return (
            2 * tau * kernels.info_nce(query, keys, temperature=tau, first_row=first_row, impl=self.impls["info_nce"])
        )

    def teacher_pairs(self, encoder: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        for student, teacher in ((encoder, "encoder"), (self.projector, "projector")):
            yield from zip(student.parameters(), self.teacher[teacher].parameters())

    def momentum(self, progress: float, following: float) -> float:
        """Averaged just before the keys of the next step. [S]"""
        return half_cosine(following, self.config.momentum, 1.0)

    def collapse_loss(self, batch_size: int) -> float:
        return 4 * self.config.temperature * math.log(batch_size)
