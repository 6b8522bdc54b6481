"""What every pipeline begins with: which samples a step has, and how their views are drawn."""

from torch import Tensor

from .augmentation import AugmentConfig, ViewParameters, draw_views
from .order import BatchOrder
from .samples import Samples
from .sources import Source


class StepSamples:
    """batch_size: of all ranks together; num_views: those of image_size pixels, without augment's local ones.

    Raises UserError for settings that cannot be.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        num_views: int,
        image_size: int,
        augment: AugmentConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.kinds = augment.view_kinds(num_views, image_size)
        self.source, self.augment, self.seed = source, augment, seed
        self.samples = Samples(source, seed)
        self.order = BatchOrder(len(source), batch_size, seed, rank=rank, world_size=world_size)

    def draw(self, index: Tensor, sizes: Tensor, epoch: int) -> list[ViewParameters]:
        """The parameters of each view. index: int64 [B]; sizes: [B, 2], height and width in pixels."""
        return draw_views(index, sizes, self.augment, self.kinds, self.seed, epoch)
