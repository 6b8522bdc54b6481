"""DILEMMA (arXiv 2204.04788): say which tokens of a sparse set carry a wrong position."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from misplace import kernels
from misplace.kernels import TokenPlan

from ..errors import UserError
from ..models import Linear, VisionTransformer
from .base import Detection, Pretext, check_drop_rate


@dataclass(frozen=True)
class DilemmaConfig:
    """DILEMMA. Theta and lambda as published [S]; the paper's own drop rate is not known, .75 is our choice [O]."""

    drop_rate: float = 0.75
    """Share of the patches that the student does not see, in [0, 1)."""
    wrong_rate: float = 0.2
    """Theta: chance that a kept token is given a wrong position, in [0, 1]."""
    weight: float = 1.0
    """Lambda: weight of the binary cross entropy beside the framework's loss."""

    def __post_init__(self):
        check_drop_rate(self.drop_rate)
        if not 0 <= self.wrong_rate <= 1:
            raise UserError(f"--pretext.wrong-rate {self.wrong_rate}: must be in [0, 1]; 0.2 is usual")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"--pretext.weight {self.weight}: must be a finite number, 0 or more")


class Dilemma(Pretext):
    """Sparse, misplaced plans and a token-wise binary cross entropy."""

    def __init__(self, config: DilemmaConfig, encoder: VisionTransformer):
        super().__init__()
        self.config, self.weight = config, config.weight
        self.head = Linear(encoder.width, 1)
        # [O] not zero: a zero head hands the trunk no gradient, and beside a contrastive loss it stays at chance
        bound = 1 / math.sqrt(encoder.width)
        nn.init.uniform_(self.head.weight, -bound, bound)
        nn.init.zeros_(self.head.bias)

    def plan(self, index: Tensor, num_patches: int, *, seed: int, epoch: int, view: int) -> TokenPlan:
        return kernels.token_plan(
            index,
            num_patches=num_patches,
            drop_rate=self.config.drop_rate,
            wrong_rate=self.config.wrong_rate,
            seed=seed,
            epoch=epoch,
            view=view,
            impl=self.impls["token_plan"],
        )

    def losses(self, encoder: VisionTransformer, tokens: Tensor, plan: TokenPlan):
        if self.config.wrong_rate == 0:  # [O] nothing to detect: the plain framework on sparse views
            return {}, None
        loss, logits = kernels.token_bce(
            tokens,
            encoder.norm.weight,
            encoder.norm.bias,
            self.head.weight,
            self.head.bias,
            plan.wrong,
            eps=encoder.norm.eps,
            impl=self.impls["token_bce"],
        )
        return {"bce": loss}, Detection(logits, plan.wrong)
