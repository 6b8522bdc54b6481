"""Retrieval: every item asks for the others of its class, ranked by cosine; average precision of each query.

    AP = mean over the relevant items of (relevant items at least as similar) / (items at least as similar)

This is scikit-learn's average precision, which the authors of arXiv 2301.11915 use too [S]: items of equal similarity
share one rank, so no order of the items can help or harm. The query is not its own answer [S].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.errors import UserError

SIMILARITIES_AT_ONCE = 2**22


class Retrieval(NamedTuple):
    """Of the queries that have an answer; queries: their rows. chance: the expected AP of a random ranking."""

    average_precision: Tensor  # fp64 [q]
    chance: Tensor  # fp64 [q]
    queries: Tensor  # int64 [q]


def retrieve(
    features: Tensor,  # [n, D]
    labels: Tensor,  # int64 [n]
    groups: Tensor | None = None,  # int64 [n]: items of the query's group are not ranked (parts of one image)
    *,
    chunk: int | None = None,
) -> Retrieval:
    """Average precision of every item as a query among the others; those without a relevant item are left out.

    chunk: queries ranked at once; None bounds the similarities held at once to 2^22. UserError where features are
    not finite or no query has an answer.
    """
    if not bool(torch.isfinite(features).all()):
        raise UserError("retrieval: some features are not finite; the encoder has diverged")
    features = torch.nn.functional.normalize(features.float(), dim=1)
    labels = labels.to(features.device)
    groups = torch.arange(len(labels)) if groups is None else groups
    groups = groups.to(features.device)
    chunk = chunk or max(1, SIMILARITIES_AT_ONCE // max(1, len(features)))
    parts = []
    for rows in torch.arange(len(features), device=features.device).split(chunk):
        ranked = groups[rows, None] != groups[None]
        ranked[torch.arange(len(rows)), rows] = False
        relevant = (labels[rows, None] == labels[None]) & ranked
        similarity = (features[rows] @ features.T).masked_fill(~ranked, -torch.inf)
        answered = relevant.any(1)
        if not answered.any():
            continue
        precision = average_precisions(similarity[answered], relevant[answered])
        chance = chance_precision(relevant[answered].sum(1), ranked[answered].sum(1))
        parts.append(Retrieval(precision, chance, rows[answered]))
    if not parts:
        raise UserError("retrieval: no item has another one of its class to be found")
    return Retrieval(*(torch.cat(column) for column in zip(*parts)))


def average_precisions(
    similarity: Tensor,  # [q, n]; -inf where an item is not ranked
    relevant: Tensor,  # bool [q, n], at least one in each row, none of them unranked
) -> Tensor:
    """fp64 [q]."""
    similarity, order = similarity.sort(dim=1, descending=True)
    hits = relevant.gather(1, order)
    position = torch.arange(similarity.shape[1], device=similarity.device).expand_as(similarity)
    last_of_ties = torch.ones_like(hits)
    last_of_ties[:, :-1] = similarity[:, :-1] != similarity[:, 1:]
    ends = position.masked_fill(~last_of_ties, similarity.shape[1]).flip(1).cummin(1).values.flip(1)
    precision = hits.cumsum(1).gather(1, ends).double() / (ends + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def chance_precision(relevant: Tensor, ranked: Tensor) -> Tensor:
    """Expected AP of a random order without ties, fp64: rho + (1 - rho) H_n / n, where rho = (r - 1) / (n - 1).

    relevant: r, int64 [q], 1 or more; ranked: n, int64 [q]. Of rank k a relevant item has (k - 1) rho others above it
    on average, and H_n / n is the mean of 1 / k.
    """
    harmonic = torch.cumsum(1 / torch.arange(1, int(ranked.max()) + 1, dtype=torch.float64), 0).to(ranked.device)
    rho = (relevant - 1) / (ranked - 1).clamp(min=1).double()
    return rho + (1 - rho) * harmonic[ranked - 1] / ranked
