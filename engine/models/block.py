"""The transformer block, and a trunk of them."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from misplace import kernels

from ..implementations import AUTO
from .layers import LayerNorm, Linear
from .recompute import made_again


class Packing(NamedTuple):
    """Sequences of mixed lengths, one behind the other in [T, D]: where each begins and ends, and the longest."""

    cu_seqlens: Tensor  # int32 [S + 1], from 0 to T
    max_seqlen: int


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, D], or over [T, D] with a Packing, each sequence by itself."""

    impls = AUTO

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        lengths = {} if packing is None else packing._asdict()
        mixed = kernels.attention(self.qkv(x), num_heads=self.num_heads, **lengths, impl=self.impls["attention"])
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
        x: Tensor,  # [B, N, D], or [T, D] with a packing
        normed: Tensor,  # norm1 of x
        following: LayerNorm | None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # both as x
        """The block's output, and what `following` makes of it."""
        with made_again(normed, lambda: self.norm1(x)):
            branch = self.attn(normed, packing)
        middle, normed = self.norm2.of_sum(x, branch)
        with made_again(normed, lambda: self.norm2(middle)):
            branch = self.mlp(normed)
        return (middle + branch, None) if following is None else following.of_sum(middle, branch)

    def of_class_token(self, x: Tensor, normed: Tensor) -> Tensor:
        """forward(x, normed, None)[0][:, :1] for a quarter of the work: the other tokens' outputs are not asked for."""
        x = x[:, :1] + self.attn.of_class_token(normed)
        return x + self.mlp(self.norm2(x))


def run_blocks(blocks: Sequence[Block], x: Tensor, packing: Packing | None = None) -> Tensor:
    """x [B, N, D] (or [T, D] with a packing) through every block, before any final norm."""
    normed = blocks[0].norm1(x)
    for block, following in zip(blocks, [*(block.norm1 for block in blocks[1:]), None]):
        x, normed = block(x, normed, following, packing)
    return x
