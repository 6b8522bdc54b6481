"""The sample order: a permutation for any size, another one each epoch, in constant memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misplace.engine.data import BatchOrder, SampleOrder
from misplace.engine.data.order import ROUNDS
from misplace.engine.errors import UserError


def whole_epoch(num_samples: int, seed: int = 7, epoch: int = 0) -> torch.Tensor:
    return SampleOrder(num_samples, seed).index(epoch, torch.arange(num_samples))


def inverse(order: SampleOrder, epoch: int, index: torch.Tensor) -> torch.Tensor:
    """The position of each sample: the rounds undone from the last to the first, walking backwards."""
    row, column = index % order.rows, index // order.rows
    for number in reversed(range(0, ROUNDS, 2)):
        column = (column - order._word(epoch, number + 1, row)) % order.columns
        row = (row - order._word(epoch, number, column)) % order.rows
    position = column * order.rows + row
    outside = position >= order.num_samples
    if outside.any():
        position[outside] = inverse(order, epoch, position[outside])
    return position


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 10, 255, 256, 257, 60_000])
def test_is_a_permutation(num_samples):
    assert torch.equal(whole_epoch(num_samples).sort().values, torch.arange(num_samples))


@pytest.mark.parametrize("num_samples", [2**20 - 3, 10**12, 10**12 + 39, 2**40 - 1])
def test_is_a_permutation_of_any_number_of_samples(num_samples):
    order = SampleOrder(num_samples, seed=3)
    positions = torch.cat((torch.arange(5_000), torch.arange(num_samples - 5_000, num_samples)))
    index = order.index(5, positions)
    assert index.min() >= 0 and index.max() < num_samples
    assert torch.equal(inverse(order, 5, index), positions)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_is_a_permutation_for_any_size_seed_and_epoch(num_samples, seed, epoch):
    index = whole_epoch(num_samples, seed, epoch)
    assert sorted(index.tolist()) == list(range(num_samples))


def test_holds_nothing_that_grows_with_the_data():
    assert all(isinstance(value, int) for value in vars(SampleOrder(10**12, seed=3)).values())


def test_epochs_and_seeds_differ():
    orders = [whole_epoch(5_000, seed, epoch) for seed in (0, 1, 2**40) for epoch in (0, 1, 2)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 12  # one match is expected of two random orders


def test_part_of_an_epoch_does_not_depend_on_the_rest():
    positions = torch.tensor([17, 3, 999, 3])
    assert torch.equal(SampleOrder(1_000, 7).index(0, positions), whole_epoch(1_000)[positions])


def test_looks_uniform():
    """Chi-square of 20 x 20 cells of (position, sample), over epochs: 361 degrees of freedom, 4.5 sigma."""
    cells = torch.zeros(20, 20)
    for epoch in range(20):
        index = whole_epoch(6_000, epoch=epoch)
        cells.view(-1).index_add_(0, torch.arange(6_000) // 300 * 20 + index // 300, torch.ones(6_000))
    expected = cells.sum() / 400
    chi_square = ((cells - expected) ** 2 / expected).sum()
    assert abs(chi_square - 361) < 4.5 * (2 * 361) ** 0.5


def test_neighbours_are_unrelated():
    index = whole_epoch(20_000).double()
    correlation = torch.corrcoef(torch.stack((index[:-1], index[1:])))[0, 1]
    assert abs(correlation) < 4 / 20_000**0.5
    assert (index[1:] - index[:-1] == 1).sum() < 10


def test_steps_walk_through_epochs():
    order = BatchOrder(num_samples=10, batch_size=4, seed=1)
    assert order.steps_per_epoch == 2
    epochs, indices = zip(*(order.locate(step) for step in range(4)))
    assert epochs == (0, 0, 1, 1)
    for epoch in (0, 1):
        expected = order.order.index(epoch, torch.arange(8))
        assert torch.equal(torch.cat(indices[2 * epoch : 2 * epoch + 2]), expected)


def test_steps_in_any_order():
    steps = [0, 41, 3, 17, 16, 15, 99, 3]
    alone = [BatchOrder(330, 4, seed=1).locate(step) for step in steps]
    one = BatchOrder(330, 4, seed=1)
    for step, (epoch, index) in zip(steps, alone):
        again = one.locate(step)
        assert again[0] == epoch == step // 82 and torch.equal(again[1], index)
        start = step % 82 * 4
        assert torch.equal(index, one.order.index(epoch, torch.arange(start, start + 4)))


def test_too_few_images_for_a_batch_is_the_users_to_mend():
    with pytest.raises(UserError, match="10 images, fewer than a batch of 11"):
        BatchOrder(num_samples=10, batch_size=11, seed=1)
