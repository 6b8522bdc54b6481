"""What the data pipeline hands to a step."""

from typing import NamedTuple

import torch
from torch import Tensor


class Failure(NamedTuple):
    """An image that could not be used. index: its number in the source; reason: in plain words."""

    index: int
    path: str
    reason: str


class Batch(NamedTuple):
    """views: one uint8 [B, S, S, C] per view. index: int64 [B], the samples in the order of the epoch.

    A sample that could not be read was replaced; its row of `index` still says the ordered sample, which is
    what the token plan and the augmentation are drawn from, and `failures` says what happened.
    """

    views: tuple[Tensor, ...]
    index: Tensor
    epoch: int
    failures: tuple[Failure, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        return self._replace(views=views, index=self.index.to(device, non_blocking=True))
