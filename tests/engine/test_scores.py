"""Bootstrap intervals: against a direct computation, and whether they cover what they claim to."""

import math

import pytest
import torch

from misplace.engine.evaluation import bootstrap_means, interval, score


def test_against_a_direct_computation():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    means = bootstrap_means(values, resamples=200, seed=3)
    generator = torch.Generator().manual_seed(3)
    for mean in means.tolist():
        drawn = [values[i].item() for i in torch.randint(50, (50,), generator=generator).tolist()]
        assert mean == pytest.approx(sum(drawn) / 50, rel=1e-9)


def test_it_covers_the_truth_about_as_often_as_it_says():
    """200 samples of 200 trials at .7: 95 % of the intervals hold .7, within 4 sigma of that count (and the percentile
    bootstrap's own shortfall, of order 1 / n)."""
    truth, trials, size = 0.7, 200, 200
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for trial in range(trials):
        right = torch.rand(size, generator=generator) < truth
        found = score("", "", right, seed=trial)
        covered += found.low <= truth <= found.high
    assert abs(covered / trials - 0.95) <= 4 * math.sqrt(0.95 * 0.05 / trials) + 1 / size


def test_the_value_lies_inside_and_the_width_is_the_standard_errors():
    right = torch.arange(400) % 4 < 3
    found = score("trained", "knn", right, chance=0.25)
    assert (found.value, found.chance) == (0.75, 0.25) and found.low < 0.75 < found.high
    expected = 2 * 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.high - found.low == pytest.approx(expected, rel=4 / math.sqrt(2 * 1000) + 0.05)


def test_values_of_one_group_are_drawn_together():
    """Ten equal values in each of 40 groups say no more than 40 values."""
    of_group = (torch.arange(40) % 2).double()
    values, groups = of_group.repeat_interleave(10), torch.arange(40).repeat_interleave(10)
    assert torch.allclose(bootstrap_means(values, groups=groups, seed=2), bootstrap_means(of_group, seed=2))
    narrow = interval(bootstrap_means(values, seed=2))
    wide = interval(bootstrap_means(values, groups=groups, seed=2))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_groups_of_unequal_size_weigh_as_their_values():
    values, groups = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([7, 7, 7, 2])
    means = bootstrap_means(values, groups=groups, resamples=2000)
    assert set(means.tolist()) == {0.0, 0.75, 1.0}  # both the small group, one of each, both the large one


def test_equal_seeds_pair_two_encoders():
    """A difference of means over one set of draws is the mean of the difference."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(80, generator=generator) for _ in range(2))
    torch.testing.assert_close(bootstrap_means(a) - bootstrap_means(b), bootstrap_means(a.double() - b.double()))
    assert not torch.equal(bootstrap_means(a), bootstrap_means(a, seed=1))
