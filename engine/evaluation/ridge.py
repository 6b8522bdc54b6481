"""Ridge regression in closed form: the head of the protocols that predict numbers, or places as one-hot rows.

    W = argmin |X W - Y|^2 / n + penalty |W|^2,   X of mean 0 and deviation 1 per column, Y of mean 0

Computed in fp64 from one eigendecomposition, of X'X or of XX', whichever is smaller, for all penalties.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from misplace.engine.errors import UserError

PENALTIES = tuple(10.0**power for power in range(-4, 5))
HELD_OUT = 5  # one row in so many chooses the penalty
MIN_ROWS = 10

Predict = Callable[[Tensor], Tensor]


def fit_ridge(
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n, T]
    penalties: tuple[float, ...] = PENALTIES,
) -> Predict:
    """features [m, D] -> predictions fp64 [m, T].

    [O] The penalty is the one with the least squared error, relative to each target's variance, on the last fifth
    of the rows after a fit to the others; then all rows are fitted. Raises UserError for fewer than 10 rows and
    for features that are not finite.
    """
    if len(features) < MIN_ROWS:
        raise UserError(f"a regression needs {MIN_ROWS} training images or more, not {len(features)}")
    if not bool(torch.isfinite(features).all()):
        raise UserError("some features are not finite; the encoder has diverged")
    features, targets = features.double(), targets.double()
    if len(penalties) == 1:
        return _fits(features, targets, penalties)[0]
    cut = len(features) - len(features) // HELD_OUT
    scale = targets.var(0, correction=0).clamp_min(1e-12)
    fits = _fits(features[:cut], targets[:cut], penalties)
    errors = [float(((fit(features[cut:]) - targets[cut:]) ** 2 / scale).mean()) for fit in fits]
    return _fits(features, targets, (penalties[errors.index(min(errors))],))[0]


def _fits(features: Tensor, targets: Tensor, penalties: tuple[float, ...]) -> list[Predict]:
    mean, offset = features.mean(0), targets.mean(0)
    deviation = features.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0.0)  # a constant column says nothing
    x, y = (features - mean) * scale, targets - offset
    weights = [scale[:, None] * weight for weight in _solve(x, y, penalties)]
    return [lambda rows, weight=weight: (rows.double() - mean) @ weight + offset for weight in weights]


def _solve(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> list[Tensor]:
    """W [D, T] for each penalty."""
    n, width = x.shape
    wide = width > n
    gram = (x @ x.T if wide else x.T @ x) / n
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    projected = vectors.T @ (y if wide else x.T @ y) / n
    solved = [vectors @ (projected / (values + penalty)[:, None]) for penalty in penalties]
    return [x.T @ dual for dual in solved] if wide else solved
