"""L2-regularised logistic regression, for a few labelled images per class [S: the form in which MSN reports low shots].

    W, b = argmin sum_i cross_entropy(W x_i / sqrt(D) + b, y_i) + penalty / 2 * |W|^2

x: features standardised by their training part, so |x|^2 / D is about 1. A few images leave none to choose a strength
on, so it is fixed [O]: a normal prior under which a logit has deviation 1 / sqrt(penalty) = 10. The optimum is unique:
no seed, no schedule. Solved by L-BFGS in fp64.
"""

import torch
from torch import Tensor

from .linear_probe import check_features, standardised, with_one

PENALTY = 0.01
ITERATIONS = 500
GRADIENT = 1e-6  # largest element at the end


def logistic_predictions(
    train_features: Tensor,  # [N, D]
    train_labels: Tensor,  # int64 [N]
    test_features: Tensor,  # [M, D]
    *,
    penalty: float = PENALTY,
) -> Tensor:
    """The predicted label of each test image, int64 [M]. Raises UserError as linear_predictions, but for rates."""
    check_features(train_features, train_labels, test_features)
    classes, target = torch.unique(train_labels, return_inverse=True)
    weights = fit_logistic(standardised(train_features, train_features), target, len(classes), penalty)
    return classes[logits(standardised(train_features, test_features), weights).argmax(1)]


def logits(
    x: Tensor,  # [M, D]
    weights: Tensor,  # fp64 [D + 1, C]
) -> Tensor:
    """fp64 [M, C] of standardised features, by the weights of fit_logistic."""
    return with_one(x.double() / x.shape[1] ** 0.5) @ weights


@torch.enable_grad()
def fit_logistic(
    x: Tensor,  # [N, D], standardised
    target: Tensor,  # int64 [N], 0 to C - 1
    num_classes: int,
    penalty: float = PENALTY,
) -> Tensor:
    """fp64 [D + 1, C], the bias below the weights and not penalised."""
    weights = torch.zeros(x.shape[1] + 1, num_classes, dtype=torch.float64, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        tolerance_grad=GRADIENT,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(logits(x, weights), target, reduction="sum")
        value = value + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach()
