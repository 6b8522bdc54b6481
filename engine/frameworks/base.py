"""What the step asks of a framework."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from misplace.kernels import TokenPlan

from ..implementations import AUTO
from ..models import VisionTransformer


@dataclass
class Student:
    """What the student's trunk made of the views; where tokens are missing or misplaced only the plan says."""

    encoder: VisionTransformer
    tokens: Tensor  # [V * B, 1 + K, D], before the final norm, view after view
    plan: TokenPlan  # of these tokens
    num_views: int  # V
    local_tokens: Tensor | None = None  # [U * B, 1 + L, D], of the local crops, whole
    num_local: int = 0  # U

    @property
    def class_tokens(self) -> tuple[Tensor, ...]:
        """One [B, D] per view, then per local crop, after the final norm."""
        found = self.encoder.norm(self.tokens[:, 0]).chunk(self.num_views)
        if self.local_tokens is None:
            return found
        return (*found, *self.encoder.norm(self.local_tokens[:, 0]).chunk(self.num_local))


class Framework(nn.Module, ABC):
    """Heads and, where there is one, a teacher.

    num_views: views a sample is drawn as, without local crops; takes_local: whether it can use those. Modules of the
    teacher never require gradients.
    """

    impls = AUTO
    num_views: int
    takes_local = False

    @abstractmethod
    def losses(
        self,
        student: Student,
        views: tuple[Tensor, ...],  # one uint8 [B, H, W, C] per view, whole; local crops are not among them
        schedule: Mapping[str, float | Tensor],  # what `schedule` said of this step
    ) -> dict[str, Tensor]:
        """Named scalar terms; their sum is the framework's loss."""

    def schedule(self, epoch: int) -> dict[str, float]:
        """Numbers that the losses of `epoch` depend on, by name; always the same names."""
        return {}

    def finish_step(self, found_inf: Tensor | None = None) -> None:
        """After the update: what the next losses depend on beside weights. found_inf: where set, nothing changes."""

    def pictures(self, student: Student, views: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What the framework made of the views, for the report: uint8 [V * B, H, W, C] by name."""
        return {}

    def teacher_pairs(self, encoder: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(student, teacher) parameters that the optimiser averages; none without a teacher."""
        return iter(())

    def momentum(self, progress: float, following: float) -> float:
        """EMA momentum of the teacher; progress, following: shares of the run as this step starts, as the next does."""
        return 1.0

    def late_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are not updated while `holds_late`."""
        return iter(())

    def holds_late(self, epoch: int) -> bool:
        """Whether the late parameters stay as they are in `epoch`."""
        return False

    @abstractmethod
    def collapse_loss(self, batch_size: int) -> float | None:
        """The framework loss of an encoder that gives every image the same vector; None where no loss says so."""
