"""MAE (arXiv 2111.06377): from a quarter of the patches, the pixels of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from misplace import kernels

from ..models import VisionTransformer
from ..models.decoder import Decoder
from .base import Framework, Student


@dataclass(frozen=True)
class MaeConfig:
    """MAE. The defaults are the published ones. [S]"""

    decoder_width: int = 512
    """Width of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder."""
    normalise_patches: bool = True
    """Targets are each patch's pixels less their mean, over their deviation."""


class Mae(Framework):
    """loss = mean over dropped patches and their pixels of (decoder's value - pixel normalised by its patch)^2. [S]

    Which patches are dropped is the plan's to say.
    """

    num_views = 1

    def __init__(self, config: MaeConfig, encoder: VisionTransformer):
        super().__init__()
        self.config = config
        self.decoder = Decoder(
            encoder.width,
            encoder.side,
            encoder.patch_size**2 * len(encoder.mean),
            width=config.decoder_width,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
        )

    def losses(self, student: Student, views: tuple[Tensor, ...], schedule) -> dict[str, Tensor]:
        encoder = student.encoder
        dropped, predicted = self._predict(student)
        loss = kernels.patch_mse(
            predicted,
            torch.cat(views),
            dropped,
            patch_size=encoder.patch_size,
            mean=encoder.mean,
            std=encoder.std,
            normalise=self.config.normalise_patches,
            impl=self.impls["patch_mse"],
        )
        return {"reconstruction": loss}

    def _predict(self, student: Student) -> tuple[Tensor, Tensor]:
        """The dropped patches, int32 [B, M], and the decoder's values of their pixels, [B, M, p * p * C]."""
        encoder, src = student.encoder, student.plan.src
        dropped = kernels.dropped_patches(src, encoder.num_patches)
        return dropped, self.decoder(encoder.norm(student.tokens), src, dropped)

    def pictures(self, student: Student, views: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Dropped patches as the decoder has them; mean and deviation of a patch are the image's, as MAE shows it."""
        encoder, images = student.encoder, torch.cat(views)
        dropped, predicted = self._predict(student)
        mean, std = (images.new_tensor(numbers, dtype=torch.float32) for numbers in (encoder.mean, encoder.std))
        patches = to_patches((images.float() / 255 - mean) / std, encoder.patch_size)
        rows, values = dropped.long()[..., None].expand(predicted.shape), predicted.float()
        if self.config.normalise_patches:
            asked = patches.gather(1, rows)
            deviation = (asked.var(-1, keepdim=True) + 1e-6).sqrt()
            values = values * deviation + asked.mean(-1, keepdim=True)
        seen = from_patches(patches.scatter(1, rows, values), images.shape, encoder.patch_size)
        return {"reconstruction": ((seen * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)}

    def collapse_loss(self, batch_size: int) -> None:
        """Pixels cannot be told from one vector for every image, and what that costs depends on the images."""
        return None


def to_patches(images: Tensor, patch_size: int) -> Tensor:
    """[B, H, W, C] -> [B, L, p * p * C], row by row, channels last."""
    batch, height, width, channels = images.shape
    grid = images.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return grid.transpose(2, 3).reshape(batch, -1, patch_size**2 * channels)


def from_patches(patches: Tensor, shape: torch.Size, patch_size: int) -> Tensor:
    """The inverse of to_patches; shape: [B, H, W, C]."""
    batch, height, width, channels = shape
    grid = patches.reshape(batch, height // patch_size, width // patch_size, patch_size, patch_size, channels)
    return grid.transpose(2, 3).reshape(shape)
