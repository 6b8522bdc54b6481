"""The decoder of a masked autoencoder: from the tokens of some patches to the pixels of the others."""

import torch
from torch import Tensor, nn

from misplace import kernels

from ..implementations import AUTO
from .block import Block, run_blocks
from .initialise import xavier_linears
from .layers import LayerNorm, Linear
from .position import sincos_2d


class Decoder(nn.Module):
    """Width, blocks and heads of its own, a fixed sin-cos table, a learned mask token; MAE's init. [S]

    encoder_width: of the tokens that come in; side: patches of a side of the image; outputs: numbers told of a patch.
    """

    impls = AUTO

    def __init__(self, encoder_width: int, side: int, outputs: int, *, width: int, depth: int, num_heads: int):
        super().__init__()
        self.embed = Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.pos_embed = nn.Parameter(sincos_2d(width, side, side), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.head = Linear(width, outputs)
        xavier_linears(self, qkv_parts=1)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        tokens: Tensor,  # [B, 1 + K, D], class token first
        src: Tensor,  # int32 [B, K], the patch of each
        dropped: Tensor,  # int32 [B, M], the patches asked for
    ) -> Tensor:
        """[B, M, outputs]. Every token is put at its true place, whatever position the encoder was told. [O]"""
        x = kernels.restore(self.embed(tokens), src, self.mask_token, self.pos_embed, impl=self.impls["restore"])
        x = run_blocks(self.blocks, x)
        images, length, _ = x.shape
        rows = 1 + dropped + length * torch.arange(images, dtype=torch.int32, device=x.device)[:, None]
        asked = x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, tuple(dropped.shape))
        return self.head(self.norm(asked))
