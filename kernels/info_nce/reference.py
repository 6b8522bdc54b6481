"""The specification of info_nce and nt_xent, in eager PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    """loss = mean_i [ logsumexp_j(s[i, j]) - s[i, first_row + i] ]
    s[i, j] = (q_i / |q_i|) . (k_j / |k_j|) / temperature

    query [N, D], key [M, D] -> scalar in nats; a row shorter than 1e-12 is divided by 1e-12. Computed and
    returned in promote_types(dtype of query, dtype of key, float32). Collapsed rows (all equal) give ln(M).
    Source: [S] van den Oord et al. 2018; MoCo v3 (Chen, Xie and He 2021) for all keys of all ranks and no
    queue.
    """
    own = torch.arange(query.shape[0], device=query.device)
    return F.cross_entropy(_scores(query, key, temperature), first_row + own)


def nt_xent(query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    """loss = mean_i [ logsumexp_{j != first_row + i}(s[i, j]) - s[i, first_row + (i + B) mod 2 B] ]

    query [2 B, D]: B rows of first views, then the B second views of the same images; key [M, D]: those of all
    ranks, of which this one's begin at first_row; s as in info_nce, with its dtypes. Collapsed rows give ln(M - 1).
    Source: [S] SimCLR (Chen, Kornblith, Norouzi and Hinton 2020).
    """
    own = torch.arange(query.shape[0], device=query.device)
    itself = torch.arange(key.shape[0], device=key.device) == (first_row + own)[:, None]
    scores = _scores(query, key, temperature).masked_fill(itself, -torch.inf)
    return F.cross_entropy(scores, first_row + own.roll(-(len(own) // 2)))


def _scores(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    compute = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    query = F.normalize(query.to(compute), dim=-1)
    key = F.normalize(key.to(compute), dim=-1)
    return query @ key.T / temperature
