"""Part segmentation by one linear layer: a 1x1 convolution on the patch tokens of four blocks side by side.

Logits are upsampled bilinearly to the mask. mIoU is the mean over classes, background included, of intersection over
union, both summed over the test images; a class that is nowhere is left out.
"""

import torch
from torch import Tensor, nn

from .attentive_probe import channel_statistics
from .fit import fit

BLOCKS_OF_12 = (4, 6, 8, 12)  # counted from 1: layers 3, 5, 7, 11 of arXiv 2301.11915 [S]
EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 30, 64, 1e-3, 0.0
POINTS_PER_PATCH = 4
IMAGES_AT_ONCE = 64


def layers_for(depth: int) -> tuple[int, ...]:
    """The blocks (from 0) at the same shares of another depth [O]: of 6 blocks 1, 2, 3, 5. () of raw pixels."""
    return tuple(sorted({max(1, round(depth * share / 12)) - 1 for share in BLOCKS_OF_12})) if depth else ()


class SegmentationHead(nn.Module):
    """tokens fp32 [B, side^2, D] -> logits [B, C, side, side]. [O] Channels standardised as over the training set."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        logits = nn.functional.linear((tokens - self.mean) / self.deviation, self.weight, self.bias)
        return logits.transpose(1, 2).unflatten(2, (side, side))


def fit_segmentation(
    tokens: Tensor,  # [n, side^2, D], of any float dtype
    masks: Tensor,  # uint8 [n, S, S]: classes 0..C-1
    num_classes: int,
    *,
    epochs: int = EPOCHS,
    lr: float = LR,
    seed: int = 0,
) -> SegmentationHead:
    """The head trained with plain cross-entropy, every pixel alike.

    [O] AdamW, lr 1e-3, 30 epochs; the loss is taken on a regular grid of 4 x 4 points of each patch.
    """
    head = SegmentationHead(tokens.shape[2], num_classes).to(tokens.device)
    head.mean, head.deviation = channel_statistics(tokens)
    points = min(masks.shape[1], POINTS_PER_PATCH * round(tokens.shape[1] ** 0.5))
    grid = ((torch.arange(points) + 0.5) * masks.shape[1] / points).long()
    targets = masks[:, grid][:, :, grid].to(tokens.device)

    def loss_of(rows: Tensor) -> Tensor:
        rows = rows.to(tokens.device)
        return nn.functional.cross_entropy(upsampled(head(tokens[rows].float()), points), targets[rows].long())

    options = {"epochs": epochs, "batch_size": BATCH_SIZE, "lr": lr, "weight_decay": WEIGHT_DECAY}
    generator = torch.Generator().manual_seed(seed)
    fit(list(head.parameters()), loss_of, len(tokens), generator=generator, **options)
    return head.eval()


@torch.no_grad()
def segment(head: SegmentationHead, tokens: Tensor, size: int) -> Tensor:
    """The class of every pixel, uint8 [n, size, size]."""
    parts = tokens.split(IMAGES_AT_ONCE)
    return torch.cat([upsampled(head(part.float()), size).argmax(1).to(torch.uint8) for part in parts])


def overlaps(
    predicted: Tensor,  # uint8 [n, S, S]
    masks: Tensor,  # uint8 [n, S, S]
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Pixels of the intersection and of the union of every image and class, int64 [n, C] each."""
    pairs = predicted.long().cpu() * num_classes + masks.long().cpu()
    counts = torch.stack([torch.bincount(image.flatten(), minlength=num_classes**2) for image in pairs])
    counts = counts.view(-1, num_classes, num_classes)
    intersection = counts.diagonal(dim1=1, dim2=2)
    return intersection, counts.sum(1) + counts.sum(2) - intersection


def upsampled(logits: Tensor, size: int) -> Tensor:
    """[B, C, side, side] -> [B, C, size, size], bilinear between the centres of patches."""
    return nn.functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
