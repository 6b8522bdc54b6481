"""Part segmentation by one linear layer: a 1x1 convolution on the patch tokens of four blocks side by side.

Logits are upsampled bilinearly to the mask. mIoU is the mean over classes, background included, of intersection over
union, both summed over the test images; a class that is nowhere is left out.
"""

import torch
from torch import Tensor, nn

from .fit import fit

BLOCKS_OF_12 = (4, 6, 8, 12)  # counted from 1: layers 3, 5, 7, 11 of arXiv 2301.11915 [S]
STEPS, BATCH_SIZE, LR, WEIGHT_DECAY = 400, 64, 3e-2, 0.0
POINTS_PER_PATCH = 4
TOKENS_WHITENED, RIDGE = 2**15, 1e-3
IMAGES_AT_ONCE = 64


def layers_for(depth: int) -> tuple[int, ...]:
    """The blocks (from 0) at the same shares of another depth [O]: of 6 blocks 1, 2, 3, 5. () of raw pixels."""
    return tuple(sorted({max(1, round(depth * share / 12)) - 1 for share in BLOCKS_OF_12})) if depth else ()


class SegmentationHead(nn.Module):
    """tokens fp32 [B, side^2, D] -> logits [B, C, side, side]. The weights stand in a whitened basis of the tokens."""

    def __init__(self, num_classes: int, mean: Tensor, basis: Tensor):
        super().__init__()
        self.weight = nn.Parameter(mean.new_zeros(num_classes, len(basis)))
        self.bias = nn.Parameter(mean.new_zeros(num_classes))
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    def forward(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        logits = nn.functional.linear(tokens - self.mean, self.weight @ self.basis, self.bias)
        return logits.transpose(1, 2).unflatten(2, (side, side))


def whitening(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean fp32 [D] of tokens [n, L, D], and the basis fp32 [D, D] in which they have unit covariance.

    [O] The channels of four blocks say nearly the same, and a first-order optimiser does not get anywhere with that
    in a minute; whitening changes the path and not what a linear layer can say. Variances below RIDGE of their mean
    are not raised to 1. From at most TOKENS_WHITENED tokens.
    """
    step = max(1, tokens.shape[0] * tokens.shape[1] // TOKENS_WHITENED)
    x = tokens.flatten(0, 1)[::step].float()
    mean = x.mean(0)
    x = x - mean
    variances, directions = torch.linalg.eigh((x.T @ x / len(x)).double())
    scale = (variances.clamp(min=0) + RIDGE * variances.mean().clamp(min=1e-12)).rsqrt()
    return mean, (scale[:, None] * directions.T).float()


def fit_segmentation(
    tokens: Tensor,  # [n, side^2, D], of any float dtype
    masks: Tensor,  # uint8 [n, S, S]: classes 0..C-1
    num_classes: int,
    *,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
) -> SegmentationHead:
    """The head trained with plain cross-entropy, every pixel alike.

    [O] AdamW, lr 3e-2, no decay, the bias from the classes' shares; the loss on a regular grid of 4 x 4 points of
    each patch.
    """
    head = SegmentationHead(num_classes, *whitening(tokens))
    shares = torch.bincount(masks.flatten(), minlength=num_classes).double() / masks.numel()
    head.bias.data.copy_(shares.clamp(min=1e-6).log())
    points = min(masks.shape[1], POINTS_PER_PATCH * round(tokens.shape[1] ** 0.5))
    grid = ((torch.arange(points) + 0.5) * masks.shape[1] / points).long()
    targets = masks[:, grid][:, :, grid].to(tokens.device)

    def loss_of(rows: Tensor) -> Tensor:
        rows = rows.to(tokens.device)
        return nn.functional.cross_entropy(upsampled(head(tokens[rows].float()), points), targets[rows].long())

    options = {"steps": steps, "batch_size": BATCH_SIZE, "lr": lr, "weight_decay": WEIGHT_DECAY}
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
