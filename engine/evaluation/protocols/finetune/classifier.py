"""An encoder with a head on the mean of its patch tokens, all of it trained."""

import copy

import torch
from torch import Tensor, nn

from misplace.engine.implementations import resolve_implementations, use_implementations
from misplace.engine.models import LayerNorm, Linear, VisionTransformer, copied_parameters, use_low_precision
from misplace.kernels import dense_plan

HEAD_DEVIATION = 2e-5


class Classifier(nn.Module):
    """Mean of the trunk's patch tokens, a fresh norm, a linear layer whose weights begin near 0: as in MAE. [S]

    Everything of the encoder is trained, also a patch projection and positions that pretraining held fixed, but for
    its final norm, which is not used.
    """

    def __init__(self, encoder: VisionTransformer, num_classes: int, generator: torch.Generator):
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        encoder.norm.requires_grad_(False)
        self.norm = LayerNorm(encoder.width)
        self.head = Linear(encoder.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_DEVIATION, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, branches: Tensor | None = None) -> Tensor:
        """Logits fp32 [B, classes]. images: uint8 [B, S, S, C]; branches: as drop_path draws them."""
        tokens = trunk(self.encoder, images, branches)
        return self.head(self.norm(tokens[:, 1:].float().mean(1)))


def build_classifier(
    encoder: VisionTransformer, num_classes: int, dtype: torch.dtype, generator: torch.Generator
) -> Classifier:
    """On a copy of the encoder and its device, the trunk computing in `dtype`, the head in fp32."""
    device = encoder.cls_token.device
    classifier = Classifier(copy.deepcopy(encoder), num_classes, generator).to(device)
    use_implementations(classifier, resolve_implementations(device))
    use_low_precision(classifier.encoder, dtype)
    classifier.encoder.compute_dtype = dtype
    return classifier


@torch.no_grad()
def refresh_copies(classifier: Classifier) -> None:
    """What an optimiser's step did to the weights reaches what computes with them."""
    for master, low in copied_parameters(classifier):
        low.copy_(master)


def drop_path(depth: int, images: int, rate: float, generator: torch.Generator) -> Tensor | None:
    """Stochastic depth (arXiv 1603.09382): what each image's branches are multiplied by, fp32 [depth, 2, images].

    0, or 1 / (1 - p) with p rising linearly from 0 at the first block to `rate` at the last [S] (timm), so that the
    mean is 1. In each block attention's branch is first, then the MLP's. None at rate 0.
    """
    if rate == 0:
        return None
    kept = 1 - torch.linspace(0, rate, depth)[:, None, None]
    return (torch.rand(depth, 2, images, generator=generator) < kept) / kept


def trunk(encoder: VisionTransformer, images: Tensor, branches: Tensor | None) -> Tensor:
    """The encoder's forward over whole images, [B, 1 + L, D], every residual branch of an image multiplied."""
    plan = dense_plan(len(images), encoder.num_patches, images.device)
    if branches is None:
        return encoder(images, plan)
    x = encoder.tokens(images, plan)
    normed = encoder.blocks[0].norm1(x)
    followings = [*(block.norm1 for block in encoder.blocks[1:]), None]
    for block, following, factors in zip(encoder.blocks, followings, branches.to(x)[..., None, None]):
        x, normed = block.norm2.of_sum(x, block.attn(normed) * factors[0])
        branch = block.mlp(normed) * factors[1]
        x, normed = (x + branch, None) if following is None else following.of_sum(x, branch)
    return x
