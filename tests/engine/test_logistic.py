"""Logistic regression of a few shots: scikit-learn's answer, and features whose right answer is known."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from misplace.engine.errors import UserError
from misplace.engine.evaluation.linear_probe import standardised
from misplace.engine.evaluation.logistic import PENALTY, fit_logistic, logistic_predictions, logits


def blobs(count: int, width: int, spread: float, seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


@pytest.mark.parametrize(("count", "width"), [(4, 30), (40, 200), (200, 10)], ids=["1-shot", "wide", "tall"])
@pytest.mark.parametrize("penalty", [PENALTY, 1.0])
def test_the_optimum_is_scikit_learns(count, width, penalty):
    """One optimum, two solvers: the probabilities agree to what their tolerances leave."""
    features, target = blobs(count, width, 1.0, 0)
    x = standardised(features, features)
    weights = fit_logistic(x, target, 4, penalty)
    scaled = (x.double() / math.sqrt(width)).numpy()
    oracle = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-10).fit(scaled, target.numpy())
    expected = torch.from_numpy(oracle.predict_proba(scaled))
    torch.testing.assert_close(logits(x, weights).softmax(1), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights[:-1].T, torch.from_numpy(oracle.coef_), rtol=0, atol=1e-3)


def test_the_gradient_is_zero_there():
    """The condition of the optimum, written out: X'(p - y) + penalty * W = 0, and no penalty on the bias."""
    features, target = blobs(20, 50, 2.0, 0)
    x = standardised(features, features)
    weights = fit_logistic(x, target, 4)
    error = logits(x, weights).softmax(1) - torch.nn.functional.one_hot(target, 4)
    gradient = x.double().T @ error / math.sqrt(50) + PENALTY * weights[:-1]
    assert gradient.abs().max() < 1e-5 and error.sum(0).abs().max() < 1e-5


@pytest.mark.parametrize("shots", [1, 5])
def test_perfect_features_are_all_right(shots):
    labels = torch.arange(100) % 4
    features = 3 * torch.nn.functional.one_hot(labels, 4).float() + 7
    train = 4 * shots
    predicted = logistic_predictions(features[:train], 3 * labels[:train] + 1, features)
    assert torch.equal(predicted, 3 * labels + 1)


@pytest.mark.parametrize("what", ["random features", "shuffled labels"])
def test_nothing_to_learn_is_chance(what):
    train, labels = blobs(40, 30, 0.5, 0)
    test, test_labels = blobs(4000, 30, 0.5, 1)
    generator = torch.Generator().manual_seed(3)
    if what == "random features":
        train, test = torch.randn(40, 30, generator=generator), torch.randn(4000, 30, generator=generator)
    else:
        test_labels = test_labels[torch.randperm(4000, generator=generator)]
    found = (logistic_predictions(train, labels, test) == test_labels).double().mean().item()
    assert abs(found - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 4000)


def test_more_shots_are_better_and_a_constant_feature_is_nothing():
    """The accuracy of the third row is that of the second: a column without variation in training never speaks."""
    test, test_labels = blobs(1000, 30, 3.0, 1)

    def accuracy(train, labels, test):
        return (logistic_predictions(train, labels, test) == test_labels).double().mean().item()

    few, many = (accuracy(*blobs(4 * shots, 30, 3.0, 0), test) for shots in (1, 20))
    assert many - few > 4 * math.sqrt(2 * 0.25 / 1000)
    train, labels = blobs(80, 30, 3.0, 0)
    constant = torch.cat([train, torch.full((80, 1), 1e3)], 1)
    assert accuracy(constant, labels, torch.cat([test, torch.randn(1000, 1)], 1)) == pytest.approx(many, abs=0.01)


def test_bad_input():
    features, labels = blobs(8, 5, 1.0, 0)
    with pytest.raises(UserError, match="two classes"):
        logistic_predictions(features, torch.zeros(8, dtype=torch.int64), features)
    with pytest.raises(UserError, match="training features are not finite"):
        logistic_predictions(features / 0, labels, features)
