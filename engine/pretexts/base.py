"""What the step asks of a pretext, and the one that asks nothing of the network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from misplace.kernels import TokenPlan, dense_plan

from ..implementations import AUTO
from ..models import VisionTransformer


class Detection(NamedTuple):
    """What a pretext's head said of every token: for the metrics and the report."""

    logits: Tensor  # fp32 [B, K]
    wrong: Tensor  # bool [B, K]


@dataclass(frozen=True)
class NoPretextConfig:
    """No pretext: every patch at its place."""


class Pretext(nn.Module, ABC):
    """A plan for the student's views, a head on its tokens, a loss.

    weight: lambda, what the sum of its terms is multiplied by in the total loss.
    """

    impls = AUTO
    weight: float = 1.0

    @abstractmethod
    def plan(self, index: Tensor, num_patches: int, *, seed: int, epoch: int, view: int) -> TokenPlan:
        """The student's token plan for samples `index` (int64 [B])."""

    def losses(
        self,
        encoder: VisionTransformer,
        tokens: Tensor,  # [B, 1 + K, D], before the final norm
        plan: TokenPlan,
    ) -> tuple[dict[str, Tensor], Detection | None]:
        """Named scalar terms before `weight`, and what the head said."""
        return {}, None


class NoPretext(Pretext):
    """Dense views, no loss."""

    def __init__(self, config: NoPretextConfig, encoder: VisionTransformer):
        super().__init__()

    def plan(self, index: Tensor, num_patches: int, *, seed: int, epoch: int, view: int) -> TokenPlan:
        return dense_plan(len(index), num_patches, index.device)
