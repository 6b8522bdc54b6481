"""A linear classifier on frozen features: multinomial logistic regression to its optimum.

    minimise  mean cross-entropy + DECAY / 2 * |W|^2,  on features standardised as over the training set [O]

Convex, so one set of features has one answer; by L-BFGS in fp64.
"""

import torch
from torch import Tensor, nn

DECAY = 1e-2
ITERATIONS = 100


def linear_predictions(
    train: Tensor,  # [n, D]
    labels: Tensor,  # int64 [n], 0..C-1
    test: Tensor,  # [m, D]
    num_classes: int,
    *,
    decay: float = DECAY,
) -> Tensor:
    """The class of each test row, int64 [m]."""
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    x = (train.double() - mean) / deviation
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias), labels)
        value = value + 0.5 * decay * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    scores = nn.functional.linear((test.double() - mean) / deviation, weight.detach(), bias.detach())
    return scores.argmax(1)
