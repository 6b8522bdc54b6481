"""What the step asks of a framework."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from ..implementations import AUTO


class Framework(nn.Module, ABC):
    """Heads and, where there is one, a teacher.

    num_views: views a sample is drawn as. Modules of the teacher never require gradients.
    """

    impls = AUTO
    num_views: int

    @abstractmethod
    def losses(
        self,
        class_tokens: tuple[Tensor, ...],  # one [B, D] per view, after the final norm
        views: tuple[Tensor, ...],  # one uint8 [B, H, W, C] per view, whole
    ) -> dict[str, Tensor]:
        """Named scalar terms; their sum is the framework's loss."""

    def teacher_pairs(self, encoder: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(student, teacher) parameters that the optimiser averages; none without a teacher."""
        return iter(())

    def momentum(self, progress: float) -> float:
        """EMA momentum of the teacher at `progress` in [0, 1] of the run."""
        return 1.0

    @abstractmethod
    def collapse_loss(self, batch_size: int) -> float:
        """The framework loss of an encoder that gives every image the same vector."""
