"""SimCLR (arXiv 2002.05709): NT-Xent between two views, without a teacher."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from misplace import kernels

from ..distributed import gather_rows, rank, world_size
from ..models import VisionTransformer
from ..models.heads import batch_norm_mlp
from .base import Framework, Student


@dataclass(frozen=True)
class SimclrConfig:
    """SimCLR. The defaults are the published ones. [S]"""

    temperature: float = 0.1
    """Softmax temperature tau."""
    hidden_width: int | None = None
    """Width of the projector's hidden layers; none: the encoder's own."""
    output_width: int = 128
    """Width of the compared vectors."""


class Simclr(Framework):
    """loss = mean over the 2 B views of all ranks of CE(z_i . z_j / tau over j != i, the other view of i). [S]"""

    num_views = 2

    def __init__(self, config: SimclrConfig, encoder: VisionTransformer):
        super().__init__()
        self.config = config
        hidden = config.hidden_width or encoder.width
        self.projector = batch_norm_mlp((encoder.width, hidden, hidden, config.output_width))

    def losses(self, student: Student, views: tuple[Tensor, ...], schedule) -> dict[str, Tensor]:
        projected = self.projector(torch.cat(student.class_tokens))  # BatchNorm over both views [S]
        loss = kernels.nt_xent(
            projected,
            gather_rows(projected),
            temperature=self.config.temperature,
            first_row=rank() * len(projected),
            impl=self.impls["info_nce"],
        )
        return {"contrastive": loss}

    def collapse_loss(self, batch_size: int) -> float:
        return math.log(2 * batch_size * world_size() - 1)
