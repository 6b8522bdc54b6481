"""The losses as training code writes them, everything in the dtype of the rows: no similarity is widened."""

import torch
import torch.nn.functional as F
from torch import Tensor

MOCO_TEMPERATURE, SIMCLR_TEMPERATURE = 0.2, 0.1


def eager_info_nce(query: Tensor, key: Tensor) -> Tensor:  # [N, D], [M, D] -> scalar
    """MoCo v3: normalise -> product -> cross_entropy."""
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    target = torch.arange(query.shape[0], device=query.device)
    return F.cross_entropy(query @ key.T / MOCO_TEMPERATURE, target)


def eager_nt_xent(rows: Tensor) -> Tensor:  # [2 B, D] -> scalar
    """SimCLR in one process: normalise -> product -> diagonal left out -> cross_entropy."""
    rows = F.normalize(rows, dim=-1)
    scores = (rows @ rows.T / SIMCLR_TEMPERATURE).fill_diagonal_(-torch.inf)
    target = torch.arange(rows.shape[0], device=rows.device).roll(rows.shape[0] // 2)
    return F.cross_entropy(scores, target)


def forward_backward(function, query: Tensor, *keys: Tensor) -> tuple[Tensor, ...]:
    """loss and the gradient of the queries."""
    loss = function(query, *keys)
    return loss.detach(), *torch.autograd.grad(loss, query)
