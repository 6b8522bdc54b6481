"""Contrastive losses of both forms of info_nce: an fp64 oracle written from the formula, plain PyTorch, and inputs."""

import functools

import torch
from torch import Tensor

from ..info_nce import info_nce, nt_xent
from .inputs import normal

WANTED = ["query", "key"]
FORMS = {"info_nce": info_nce, "nt_xent": nt_xent}


def positive_of(form: str, rows: int) -> Tensor:
    """The row of the positive of every query, among this rank's own."""
    own = torch.arange(rows)
    return own if form == "info_nce" else (own + rows // 2) % rows


def oracle(form: str, query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    """The mean of -log(e^positive / sum of e^others and it), every cosine a quotient; fp64 in, fp64 out."""
    lengths = [torch.linalg.vector_norm(rows, dim=1).clamp(min=1e-12) for rows in (query, key)]
    scores = torch.einsum("id,jd->ij", query, key) / torch.outer(*lengths) / temperature
    takes_part = torch.ones_like(scores, dtype=torch.bool)
    if form == "nt_xent":
        for i in range(len(query)):
            takes_part[i, first_row + i] = False
    weights = torch.where(takes_part, (scores - scores.detach().amax()).exp(), 0.0)
    positive = weights.gather(1, first_row + positive_of(form, len(query)).to(key.device)[:, None])[:, 0]
    return -(positive / weights.sum(1)).log().mean()


def eager(form: str, query: Tensor, key: Tensor, temperature: float, first_row: int) -> Tensor:
    """Plain PyTorch as under autocast: the product in the dtype of the rows, the rest in fp32."""
    dtype, query, key = query.dtype, query.float(), key.float()
    query, key = ((rows / rows.square().sum(-1, keepdim=True).sqrt()).to(dtype) for rows in (query, key))
    scores = (query @ key.T).float() / temperature
    own = torch.arange(len(query), device=query.device)
    if form == "nt_xent":
        scores[own, first_row + own] = -torch.inf
    positive = scores[own, first_row + positive_of(form, len(query))]
    return (scores.logsumexp(-1) - positive).mean()


def ours(form: str, impl: str, temperature: float = 0.2, first_row: int = 0):
    return functools.partial(FORMS[form], temperature=temperature, first_row=first_row, impl=impl)


def others(form: str, temperature: float = 0.2, first_row: int = 0):
    """eager and oracle."""
    given = dict(temperature=temperature, first_row=first_row)
    return functools.partial(eager, form, **given), functools.partial(oracle, form, **given)


def make(queries: int, keys: int, width: int, dtype=torch.float32, device: str = "cpu") -> dict[str, Tensor]:
    return {
        "query": 3 * normal(queries, width, seed=1, dtype=dtype, device=device),
        "key": normal(keys, width, seed=2, dtype=dtype, device=device),
    }


def with_itself(op):
    """As SimCLR in one process calls it: the rows are queries and keys."""
    return lambda query: op(query, query)
