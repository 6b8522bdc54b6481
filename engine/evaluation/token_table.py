"""All tokens of many pictures, held in memory for the heads that are trained on them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.errors import UserError

from .segmentation_probe import layers_for
from .subjects import Subject

LARGEST = 6e4  # below the largest fp16


class TokenTable(NamedTuple):
    """What a subject makes of n pictures. Patch tokens are kept in fp16 [O]: half the memory of the largest part."""

    cls: Tensor  # fp32 [n, D], on the device
    patches: Tensor  # fp16 [n, L, D]
    rows: Tensor  # int64 [n]: which picture each is

    @property
    def all_tokens(self) -> Tensor:
        """fp16 [n, 1 + L, D], the class token first; of raw pixels, which have none of that width, the patches."""
        if self.cls.shape[1] != self.patches.shape[2]:
            return self.patches
        return torch.cat([self.cls[:, None].half(), self.patches], dim=1)


@torch.no_grad()
def token_table(subject: Subject, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> TokenTable:
    """Of batches (images uint8 [b, S, S, C], rows int64 [b]). UserError where there are none or a token overflows."""
    cls, patches, rows = [], [], []
    for images, numbers in batches:
        tokens = subject.tokens(images.to(device))
        cls.append(tokens.cls)
        patches.append(halved(subject, tokens.patches))
        rows.append(numbers)
    if not rows:
        raise UserError("none of the images chosen for evaluation can be decoded")
    return TokenTable(torch.cat(cls), torch.cat(patches), torch.cat(rows))


@torch.no_grad()
def layer_table(
    subject: Subject, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Patch tokens of segmentation_probe's blocks side by side, fp16 [n, L, blocks * D], and the rows int64 [n]."""
    made, rows = [], []
    for images, numbers in batches:
        layers = subject.layers(images.to(device), layers_for(subject.depth))
        made.append(halved(subject, torch.cat(layers, dim=2)))
        rows.append(numbers)
    if not rows:
        raise UserError("none of the images chosen for evaluation can be decoded")
    return torch.cat(made), torch.cat(rows)


def halved(subject: Subject, tokens: Tensor) -> Tensor:
    if not bool((tokens.abs() < LARGEST).all()):
        raise UserError(f"{subject.name}: some tokens are not finite or beyond {LARGEST:.0f}; the encoder has diverged")
    return tokens.half()
