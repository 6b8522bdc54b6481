"""A Vision Transformer that embeds exactly the tokens of a plan."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from misplace import kernels
from misplace.kernels import TokenPlan

from ..implementations import AUTO
from .block import Block, Packing, run_blocks
from .initialise import INITS, learned_positions
from .layers import LayerNorm, packed_weights
from .position import bicubic_matrix, sincos_2d

CACHE_BYTES = 8 * 2**20


class PatchProjection(nn.Module):
    """The parameters of the patch embedding, named as timm names them."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)


class VisionTransformer(nn.Module):
    """ViT that takes images of any side that is a multiple of its patches'.

    image_size, patch_size: sides in pixels, the first a multiple of the second; mean, std: per channel, for pixels
    scaled to [0, 1]; init: one of INITS; freeze_patch_projection: keep it at its random init (MoCo v3);
    learned_position: the table of positions is trained (DINO), else it is the fixed 2-D sin-cos one. Images of
    another side than image_size are given the table resized bicubically.
    """

    impls = AUTO

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        width: int,
        depth: int,
        num_heads: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        init: str = "xavier_uniform",
        freeze_patch_projection: bool = True,
        learned_position: bool = False,
    ):
        super().__init__()
        side = image_size // patch_size
        self.patch_size, self.side, self.num_patches, self.width = patch_size, side, side * side, width
        self.mean, self.std = tuple(mean), tuple(std)
        self.compute_dtype = torch.float32
        self.patch_embed = PatchProjection(channels, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_2d(width, side, side)[None], requires_grad=False)
        self.register_buffer("no_position", torch.zeros(width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = LayerNorm(width)
        INITS[init](self)
        if learned_position:
            learned_positions(self)
        self._resizing: dict[int, Tensor] = {}  # side -> the matrix that resizes the table, made when asked for
        self._packings: dict[tuple[tuple[int, ...], ...], Packing] = {}  # shapes -> where sequences begin and end
        self.patch_embed.requires_grad_(not freeze_patch_projection)

    def forward(
        self,
        images: Tensor,  # uint8 [B, H, W, C]
        plan: TokenPlan,
    ) -> Tensor:
        """The trunk's tokens before the final norm: [B, 1 + K, D] in the compute dtype, class token first."""
        return run_blocks(self.blocks, self.tokens(images, plan))

    def forward_packed(self, parts: Sequence[tuple[Tensor, TokenPlan]]) -> list[Tensor]:
        """forward of each (images, plan), of whatever sizes, in one pass: every sequence attends to itself alone."""
        entering = [self.tokens(images, plan) for images, plan in parts]
        shapes = tuple(tuple(x.shape[:2]) for x in entering)
        packing = self._packings.get(shapes)
        if packing is None:
            packing = self._packings[shapes] = packing_of(shapes, entering[0].device)
        x = run_blocks(self.blocks, torch.cat([x.flatten(0, 1) for x in entering]), packing)
        parts = x.split([images * tokens for images, tokens in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes)]

    def tokens(self, images: Tensor, plan: TokenPlan) -> Tensor:
        """What enters the first block: [B, 1 + K, D]."""
        projection = self.patch_embed.proj
        return kernels.patch_embed(
            images,
            projection.weight.to(self.compute_dtype),
            projection.bias,
            self.position_table(images.shape[1] // self.patch_size),
            self.cls_token[0, 0],
            self.no_position,
            plan.src,
            plan.pos,
            patch_size=self.patch_size,
            mean=self.mean,
            std=self.std,
            impl=self.impls["patch_embed"],
        )

    def position_table(self, side: int) -> Tensor:
        """[1 + side^2, D], the class token's row first: the table itself, or resized bicubically as in DINO. [S]"""
        table = self.pos_embed[0]
        if side == self.side:
            return table
        if side not in self._resizing:
            self._resizing[side] = bicubic_matrix(self.side, side).to(table.device)
        return torch.cat([table[:1], self._resizing[side].to(table.dtype) @ table[1:]])

    @torch.no_grad()
    def class_token(self, images: Tensor) -> Tensor:
        """The normalised class token of whole images, [B, D] in the compute dtype: what a teacher is asked for."""
        parts = images.split(self.images_at_once)
        with packed_weights(self.blocks, len(parts[0]) * (1 + self.num_patches)):
            return self.norm(torch.cat([self._class_token(part) for part in parts]))

    def _class_token(self, images: Tensor) -> Tensor:
        """Before the norm, of as many images as are worked on at once."""
        x = self.tokens(images, kernels.dense_plan(len(images), self.num_patches, images.device))
        normed = self.blocks[0].norm1(x)
        for block, following in zip(self.blocks[:-1], self.blocks[1:]):
            x, normed = block(x, normed, following.norm1)
        return self.blocks[-1].of_class_token(x, normed)[:, 0]

    @property
    def images_at_once(self) -> int:
        """Images whose widest activation stays in a CPU's cache; on a GPU all of them."""
        if self.cls_token.device.type != "cpu":
            return 2**31
        return max(1, CACHE_BYTES // ((1 + self.num_patches) * 4 * self.width * self.compute_dtype.itemsize))

    @torch.no_grad()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Frozen features of whole images, fp32: class token [B, D] and patch tokens [B, L, D], normalised."""
        plan = kernels.dense_plan(len(images), self.num_patches, images.device)
        tokens = self.norm(self(images, plan)).float()
        return tokens[:, 0], tokens[:, 1:]


def packing_of(shapes: Sequence[tuple[int, int]], device: torch.device) -> Packing:
    """shapes: (sequences, tokens of each) of every part, in order."""
    lengths = [tokens for sequences, tokens in shapes for _ in range(sequences)]
    ends = list(itertools.accumulate(lengths, initial=0))
    return Packing(torch.tensor(ends, dtype=torch.int32, device=device), max(lengths))
