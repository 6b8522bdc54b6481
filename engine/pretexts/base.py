"""What the step asks of a pretext, and the one that asks nothing of the network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from misplace.kernels import TokenPlan, dense_plan, token_plan

from ..errors import UserError
from ..implementations import AUTO
from ..models import VisionTransformer


class Detection(NamedTuple):
    """What a pretext's head said of every token: for the metrics and the report."""

    logits: Tensor  # fp32 [B, K]
    wrong: Tensor  # bool [B, K]


def check_drop_rate(drop_rate: float) -> None:
    """UserError unless a share of patches that leaves some."""
    if not 0 <= drop_rate < 1:
        raise UserError(f"--pretext.drop-rate {drop_rate}: must be in [0, 1); 0.75 keeps a quarter")


@dataclass(frozen=True)
class NoPretextConfig:
    """No pretext: every token at its place."""

    drop_rate: float = 0.0
    """Share of the patches that the student does not see, in [0, 1)."""

    def __post_init__(self):
        check_drop_rate(self.drop_rate)


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
    """Views whole or, with a drop rate, sparse; no loss."""

    def __init__(self, config: NoPretextConfig, encoder: VisionTransformer):
        super().__init__()
        self.drop_rate = config.drop_rate

    def plan(self, index: Tensor, num_patches: int, *, seed: int, epoch: int, view: int) -> TokenPlan:
        if self.drop_rate == 0:
            return dense_plan(len(index), num_patches, index.device)
        rates = {"drop_rate": self.drop_rate, "wrong_rate": 0.0}
        impl = self.impls["token_plan"]
        return token_plan(index, num_patches=num_patches, **rates, seed=seed, epoch=epoch, view=view, impl=impl)
