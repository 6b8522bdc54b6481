"""The specification of info_nce, in eager PyTorch."""

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
    compute = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    query = F.normalize(query.to(compute), dim=-1)
    key = F.normalize(key.to(compute), dim=-1)
    target = torch.arange(first_row, first_row + query.shape[0], device=query.device)
    return F.cross_entropy(query @ key.T / temperature, target)
