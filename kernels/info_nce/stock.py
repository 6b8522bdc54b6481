"""info_nce and nt_xent by PyTorch's own operators: rows normalised in fp32 or wider, multiplied in their own dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    own = torch.arange(query.shape[0], device=query.device)
    return F.cross_entropy(_scores(query, key, temperature), first_row + own)


def nt_xent(query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    scores = _scores(query, key, temperature)
    scores.diagonal(first_row).fill_(-torch.inf)
    own = torch.arange(query.shape[0], device=query.device)
    return F.cross_entropy(scores, first_row + own.roll(-(len(own) // 2)))


def _scores(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    normalised = _normalised(query)
    return (normalised @ (normalised if key is query else _normalised(key)).T).to(_compute(query)) / temperature


def _normalised(rows: Tensor) -> Tensor:
    return F.normalize(rows.to(_compute(rows)), dim=-1).to(rows.dtype)


def _compute(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)
