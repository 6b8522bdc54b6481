"""A Vision Transformer that embeds exactly the tokens of a plan."""

import torch
from torch import Tensor, nn

from misplace import kernels
from misplace.kernels import TokenPlan

from ..implementations import AUTO
from .initialise import INITS
from .layers import LayerNorm, Linear, packed_weights
from .position import sincos_2d
from .recompute import made_again

CACHE_BYTES = 8 * 2**20


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, D]."""

    impls = AUTO

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = kernels.attention(self.qkv(x), num_heads=self.num_heads, impl=self.impls["attention"])
        return self.proj(mixed)

    def of_class_token(self, x: Tensor) -> Tensor:
        """forward(x)[:, :1], the other queries left out."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        mixed = kernels.attention(q[:, :1], k, v, impl=self.impls["attention"])
        return self.proj(mixed.flatten(2))


class Mlp(nn.Module):
    """Linear, GELU, Linear with four times the width between."""

    impls = AUTO

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden, bias = self.fc1(x, with_bias=False), self.fc1.bias  # whose gradient falls out of gelu's
        active = kernels.gelu(hidden, bias, impl=self.impls["gelu"])
        with made_again(active, lambda: kernels.gelu(hidden, bias, impl=self.impls["gelu"])):
            return self.fc2(active)


class Block(nn.Module):
    """Pre-norm transformer block. Every residual sum is made in the pass of the norm that reads it."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        normed: Tensor,  # [B, N, D], norm1 of x
        following: LayerNorm | None,
    ) -> tuple[Tensor, Tensor | None]:  # both [B, N, D]
        """The block's output, and what `following` makes of it."""
        with made_again(normed, lambda: self.norm1(x)):
            branch = self.attn(normed)
        middle, normed = self.norm2.of_sum(x, branch)
        with made_again(normed, lambda: self.norm2(middle)):
            branch = self.mlp(normed)
        return (middle + branch, None) if following is None else following.of_sum(middle, branch)

    def of_class_token(self, x: Tensor, normed: Tensor) -> Tensor:
        """forward(x, normed, None)[0][:, :1] for a quarter of the work: the other tokens' outputs are not asked for."""
        x = x[:, :1] + self.attn.of_class_token(normed)
        return x + self.mlp(self.norm2(x))


class PatchProjection(nn.Module):
    """The parameters of the patch embedding, named as timm names them."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)


class VisionTransformer(nn.Module):
    """ViT with a fixed 2-D sin-cos table.

    image_size, patch_size: sides in pixels, the first a multiple of the second; mean, std: per channel, for pixels
    scaled to [0, 1]; init: one of INITS; freeze_patch_projection: keep it at its random init (MoCo v3).
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
    ):
        super().__init__()
        side = image_size // patch_size
        self.patch_size, self.num_patches, self.width = patch_size, side * side, width
        self.mean, self.std = tuple(mean), tuple(std)
        self.compute_dtype = torch.float32
        self.patch_embed = PatchProjection(channels, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_2d(width, side, side)[None], requires_grad=False)
        self.register_buffer("no_position", torch.zeros(width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = LayerNorm(width)
        INITS[init](self)
        self.patch_embed.requires_grad_(not freeze_patch_projection)

    def forward(
        self,
        images: Tensor,  # uint8 [B, H, W, C]
        plan: TokenPlan,
    ) -> Tensor:
        """The trunk's tokens before the final norm: [B, 1 + K, D] in the compute dtype, class token first."""
        x, normed = self._enter(images, plan)
        for block, following in zip(self.blocks, [*(block.norm1 for block in self.blocks[1:]), None]):
            x, normed = block(x, normed, following)
        return x

    def _enter(self, images: Tensor, plan: TokenPlan) -> tuple[Tensor, Tensor]:
        """What the first block takes."""
        x = self.tokens(images, plan)
        return x, self.blocks[0].norm1(x)

    def tokens(self, images: Tensor, plan: TokenPlan) -> Tensor:
        """What enters the first block: [B, 1 + K, D]."""
        projection = self.patch_embed.proj
        return kernels.patch_embed(
            images,
            projection.weight.to(self.compute_dtype),
            projection.bias,
            self.pos_embed[0],
            self.cls_token[0, 0],
            self.no_position,
            plan.src,
            plan.pos,
            patch_size=self.patch_size,
            mean=self.mean,
            std=self.std,
            impl=self.impls["patch_embed"],
        )

    @torch.no_grad()
    def class_token(self, images: Tensor) -> Tensor:
        """The normalised class token of whole images, [B, D] in the compute dtype: what a teacher is asked for."""
        parts = images.split(self.images_at_once)
        with packed_weights(self.blocks, len(parts[0]) * (1 + self.num_patches)):
            return self.norm(torch.cat([self._class_token(part) for part in parts]))

    def _class_token(self, images: Tensor) -> Tensor:
        """Before the norm, of as many images as are worked on at once."""
        x, normed = self._enter(images, kernels.dense_plan(len(images), self.num_patches, images.device))
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
