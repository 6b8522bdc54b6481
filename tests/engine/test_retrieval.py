"""Average precision against scikit-learn and a brute force; perfect, random and shuffled features; who is ranked."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from misplace.engine.errors import UserError
from misplace.engine.evaluation.ratio_scores import bootstrap_ratios, mean_ratio, ratio_score, sums_by_group
from misplace.engine.evaluation.retrieval import average_precisions, chance_precision, retrieve


def noisy(count, classes=5, width=12, spread=1.5, seed=0):
    """Overlapping clusters: features [count, width] and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def cosines(features):
    rows = features.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def brute_force(features, labels, groups):
    """Average precision of every query that has an answer, in plain loops."""
    similarity, found = cosines(features), {}
    for query in range(len(labels)):
        others = [i for i in range(len(labels)) if i != query and groups[i] != groups[query]]
        ranking = sorted(others, key=lambda i: -similarity[query, i])
        hits, precisions = 0, []
        for rank, i in enumerate(ranking, 1):
            if labels[i] == labels[query]:
                hits += 1
                precisions.append(hits / rank)
        if precisions:
            found[query] = sum(precisions) / len(precisions)
    return found


def test_equals_scikit_learn():
    features, labels = noisy(150)
    got = retrieve(features, labels)
    similarity, numbers = cosines(features), labels.numpy()
    for query, precision in zip(got.queries.tolist(), got.average_precision.tolist()):
        others = np.arange(150) != query
        relevant = numbers[others] == numbers[query]
        assert precision == pytest.approx(average_precision_score(relevant, similarity[query, others]), abs=1e-12)
    assert 0.3 < got.average_precision.mean() < 0.9


@pytest.mark.parametrize("per_group", [1, 4])
def test_equals_brute_force(per_group):
    features, labels = noisy(90, seed=3)
    groups = torch.arange(90) // per_group
    got = retrieve(features, labels, groups)
    expected = brute_force(features, labels.tolist(), groups.tolist())
    assert got.queries.tolist() == list(expected)
    assert got.average_precision.tolist() == pytest.approx(list(expected.values()), abs=1e-12)


def test_ties_share_a_rank_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    similarity = torch.tensor(rng.integers(0, 4, (60, 40)) / 4)
    relevant = torch.tensor(rng.random((60, 40)) < 0.3)
    relevant[:, 0] = True
    got = average_precisions(similarity, relevant)
    for precision, row, answers in zip(got.tolist(), similarity.numpy(), relevant.numpy()):
        assert precision == pytest.approx(average_precision_score(answers, row), abs=1e-12)


def test_perfect_features_find_everything():
    labels = torch.arange(60) % 6
    found = retrieve(torch.eye(6)[labels], labels)
    assert len(found.queries) == 60 and (found.average_precision == 1).all()


def test_features_that_say_nothing_are_at_the_share_of_answers():
    """All alike: one tie, so whatever the order of the items, precision is the share of relevant ones."""
    labels = torch.arange(60) // 20
    found = retrieve(torch.ones(60, 4), labels)
    assert found.average_precision.tolist() == pytest.approx([19 / 59] * 60)


@pytest.mark.parametrize(("relevant", "ranked"), [(1, 1), (1, 7), (3, 8), (8, 8)])
def test_chance_is_the_mean_over_all_orders(relevant, ranked):
    """Against every arrangement of the answers in the ranking."""
    arrangements = torch.tensor(
        [[i in places for i in range(ranked)] for places in itertools.combinations(range(ranked), relevant)]
    )
    similarity = torch.arange(ranked, 0, -1.0).expand(len(arrangements), ranked)
    expected = average_precisions(similarity, arrangements).mean()
    got = chance_precision(torch.tensor([relevant]), torch.tensor([ranked]))
    assert float(got) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("shuffled", [False, True])
def test_random_features_and_shuffled_labels_are_at_chance(shuffled):
    """Whatever ties the queries of one ranking together, 30 drawings are independent: 4 of their standard errors."""
    generator = torch.Generator().manual_seed(1)
    features, labels = noisy(120, spread=0.5)
    means = []
    for _ in range(30):
        if shuffled:
            labels = labels[torch.randperm(120, generator=generator)]
        else:
            features = torch.randn(120, 16, generator=generator)
        found = retrieve(features, labels)
        means.append(float((found.average_precision - found.chance).mean()))
    assert abs(np.mean(means)) < 4 * np.std(means, ddof=1) / math.sqrt(30)
    assert np.std(means) < 0.02  # a bound that bites: perfect features are at 1


def test_own_group_is_neither_answer_nor_distractor():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.9, 0.5], [0.0, 1.0]])
    labels, groups = torch.tensor([0, 0, 0, 1]), torch.tensor([7, 7, 8, 9])
    found = retrieve(features, labels, groups)
    assert found.queries.tolist() == [0, 1, 2]  # the last has no answer
    assert found.average_precision.tolist() == [1, 1, 1]
    assert found.chance.tolist() == pytest.approx([0.75, 0.75, 1 / 3 * (1 - 0.5) * (1 + 1 / 2 + 1 / 3) + 0.5])


def test_chunks_change_nothing():
    features, labels = noisy(70)
    whole = retrieve(features, labels, torch.arange(70) // 2)
    for chunk in (1, 13, 69, 500):
        cut = retrieve(features, labels, torch.arange(70) // 2, chunk=chunk)
        assert torch.equal(cut.queries, whole.queries)
        torch.testing.assert_close(cut.average_precision, whole.average_precision, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [(torch.full((4, 2), torch.nan), [0, 0, 1, 1], "not finite"), (torch.eye(3), [0, 1, 2], "no item has another")],
)
def test_bad_input_is_one_line(features, labels, said):
    with pytest.raises(UserError, match=said):
        retrieve(features, torch.tensor(labels))


def test_map_is_the_mean_over_classes_of_the_mean_over_queries():
    values, labels = torch.tensor([1.0, 0.0, 0.5, 0.25]), torch.tensor([0, 0, 0, 1])
    sums, counts = sums_by_group(values, labels, torch.tensor([30, 10, 30, 20]), 3)
    assert sums.tolist() == [[0, 0, 0], [0, 0.25, 0], [1.5, 0, 0]]
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [2, 0, 0]]
    assert float(mean_ratio(sums.sum(0), counts.sum(0))) == pytest.approx((0.5 + 0.25) / 2)


def test_interval_holds_the_value_and_shrinks_with_the_images():
    generator = torch.Generator().manual_seed(0)
    widths = []
    for count in (50, 800):
        counts = torch.randint(1, 5, (count, 3), generator=generator).double()
        sums = counts * (0.6 + 0.1 * torch.randn(count, 3, generator=generator))
        made = ratio_score("trained", "mAP", sums, counts, chance=0.1, seed=4)
        assert made.low < made.value < made.high
        assert made == ratio_score("trained", "mAP", sums, counts, chance=0.1, seed=4)
        widths.append(made.high - made.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)  # the square root of 16


def test_bootstrap_spread_is_that_of_the_mean():
    """One class, one value per image: the standard error of a mean is known."""
    values = torch.rand(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = bootstrap_ratios(values, torch.ones(400, 1, dtype=torch.float64), resamples=2000)
    error = float(values.std(correction=0)) / 20
    assert float(samples.std()) == pytest.approx(error, rel=4 / math.sqrt(2 * 2000))
