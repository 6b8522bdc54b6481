"""The linear probe against scikit-learn, and on features whose right answer is known."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from misplace.engine.errors import UserError
from misplace.engine.evaluation.linear_probe import LinearSettings, held_out, linear_predictions, train_linear
from misplace.engine.evaluation.shots import draw_shots

CLASSES, WIDTH = 5, 24


def blobs(count: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clusters: features [count, WIDTH] of differing scales, and labels that are no indices."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    features = centres[label] + spread * torch.randn(count, WIDTH, generator=generator)
    return features * torch.logspace(-2, 2, WIDTH) + 7, 3 * label + 1


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    return (predicted == labels).double().mean().item()


def four_sigma(share: float, count: int) -> float:
    return 4 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
def test_as_good_as_scikit_learns_logistic_regression(spread):
    """The two differ on some test images; their difference has the deviation of a sum of signs over those."""
    train, labels = blobs(1200, spread, 0)
    test, test_labels = blobs(1000, spread, 1)
    ours = linear_predictions(train, labels, test)
    mean, deviation = train.mean(0), train.std(0)
    oracle = LogisticRegression(C=1.0, max_iter=5000).fit(((train - mean) / deviation).numpy(), labels.numpy())
    theirs = torch.from_numpy(oracle.predict(((test - mean) / deviation).numpy()))
    one_is_right = (ours == test_labels) != (theirs == test_labels)
    bound = 4 * math.sqrt(one_is_right.sum().item()) / len(test)
    assert abs(accuracy(ours, test_labels) - accuracy(theirs, test_labels)) <= bound
    assert accuracy(ours, test_labels) > 1 / CLASSES + four_sigma(1 / CLASSES, len(test))


def test_perfect_features_are_all_right():
    labels = torch.arange(400) % CLASSES
    features = torch.nn.functional.one_hot(labels, CLASSES).float()
    assert accuracy(linear_predictions(features[:300], labels[:300], features[300:]), labels[300:]) == 1.0


@pytest.mark.parametrize("shuffled", [True, False])
def test_nothing_to_learn_is_chance(shuffled):
    train, labels = blobs(1000, 0.5, 0)
    test, test_labels = blobs(1000, 0.5, 1)
    generator = torch.Generator().manual_seed(5)
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    else:
        train, test = torch.randn(1000, WIDTH, generator=generator), torch.randn(1000, WIDTH, generator=generator)
    found = accuracy(linear_predictions(train, labels, test), test_labels)
    assert abs(found - 1 / CLASSES) <= four_sigma(1 / CLASSES, len(test))


def test_gradient_is_that_of_the_mean_cross_entropy():
    """One step of one whole batch from zero, at a cosine that has not begun, against autograd."""
    features, labels = blobs(60, 1.0, 0)
    target = (labels - 1) // 3
    settings = LinearSettings((0.5,), epochs=1, batch_size=60)
    found = train_linear(features, target, (0.5,), CLASSES, settings=settings, seed=0)[0]
    x = (features - features.mean(0)) / features.std(0, correction=0)
    x = torch.cat([x, torch.ones(60, 1)], 1)
    weights = torch.zeros(WIDTH + 1, CLASSES, requires_grad=True)
    torch.nn.functional.cross_entropy(x @ weights, target).backward()
    torch.testing.assert_close(found, -0.5 * weights.grad, rtol=1e-4, atol=1e-6)


def test_rates_trained_together_are_as_alone():
    features, labels = blobs(200, 1.0, 0)
    target, settings = (labels - 1) // 3, LinearSettings(epochs=3, batch_size=64)
    both = train_linear(features, target, (0.01, 0.1), CLASSES, settings=settings, seed=4)
    for number, rate in enumerate((0.01, 0.1)):
        alone = train_linear(features, target, (rate,), CLASSES, settings=settings, seed=4)
        torch.testing.assert_close(both[number], alone[0])


def test_a_rate_that_diverges_is_not_chosen():
    train, labels = blobs(500, 1.0, 0)
    test, test_labels = blobs(500, 1.0, 1)
    settings = LinearSettings(learning_rates=(0.01, 1e30))
    said = []
    predicted = linear_predictions(train, labels, test, settings=settings, say=said.append)
    assert "0.01" in said[0] and accuracy(predicted, test_labels) > 0.5


def test_one_seed_one_answer():
    train, labels = blobs(300, 3.0, 0)
    test, _ = blobs(300, 3.0, 1)
    first, again = (linear_predictions(train, labels, test, seed=2) for _ in range(2))
    assert torch.equal(first, again)


def test_held_out_is_a_fifth_of_every_class():
    target = torch.tensor([0] * 50 + [1] * 10 + [2] * 2)
    held = held_out(target, seed=0)
    assert [int(held[target == c].sum()) for c in range(3)] == [10, 2, 1]
    assert not torch.equal(held, held_out(target, seed=1))


def test_shots_are_as_many_of_each_class():
    labels = torch.tensor([4] * 30 + [9] * 20 + [2] * 10)
    rows = draw_shots(labels, 7, seed=0)
    assert len(set(rows.tolist())) == 21
    assert torch.equal(torch.unique(labels[rows], return_counts=True)[1], torch.tensor([7, 7, 7]))
    assert not torch.equal(rows, draw_shots(labels, 7, seed=1))
    assert set(draw_shots(labels, 3, seed=0).tolist()) < set(rows.tolist())
    with pytest.raises(UserError, match="11 shots: only 10 training images of class 2"):
        draw_shots(labels, 11, seed=0)
    with pytest.raises(UserError, match="1 or more"):
        draw_shots(labels, 0, seed=0)


def test_bad_input():
    features, labels = blobs(40, 1.0, 0)
    with pytest.raises(UserError, match="two classes"):
        linear_predictions(features, torch.ones(40).long(), features)
    with pytest.raises(UserError, match="test features are not finite"):
        linear_predictions(features, labels, features * float("nan"))
    with pytest.raises(UserError, match="no training images"):
        linear_predictions(features[:0], labels[:0], features)
    lonely = torch.cat([torch.zeros(39), torch.ones(1)]).long()
    with pytest.raises(UserError, match="a single training image"):
        linear_predictions(features, lonely, features)
    one_rate = LinearSettings((0.01,))
    assert linear_predictions(features, lonely, features, settings=one_rate).shape == (40,)
