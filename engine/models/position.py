"""Fixed positional embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(width: int, rows: int, columns: int, temperature: float = 10_000.0) -> Tensor:
    """The fixed 2-D sin-cos table of MoCo v3, class token first with a zero row. [S]

    width: channels, a multiple of 4. Returns float32 [1 + rows * columns, width]; the channels are
    (sin x, cos x, sin y, cos y), a quarter each, x along columns.
    """
    if width % 4:
        raise ValueError(f"sincos_2d: width {width} is not a multiple of 4")
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()


def bicubic_matrix(side: int, to: int) -> Tensor:
    """What resizes a table of side x side rows to `to` x `to` bicubically: float32 [to * to, side * side].

    As F.interpolate without antialiasing, which DINO uses for its local crops. [S]
    """
    basis = torch.eye(side * side).reshape(-1, 1, side, side)
    return F.interpolate(basis, size=(to, to), mode="bicubic").reshape(side * side, to * to).T.contiguous()
