"""Position and scale of crops, jigsaw puzzles, ridge and assignment, where the right answer is known."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Ridge

from misplace.engine.data import open_source
from misplace.engine.data.poses import render_dataset
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Split, Study, pixel_subject, subjects
from misplace.engine.evaluation.assignment import best_assignment
from misplace.engine.evaluation.jigsaw import (
    cut,
    cut_size,
    draw_orders,
    join,
    reassemble,
    resize,
    shares,
    shuffle,
    tile_features,
)
from misplace.engine.evaluation.pairs import POSITION, SCALE, crops, draw_pairs, pair_targets, r_squared
from misplace.engine.evaluation.protocols import spatial
from misplace.engine.evaluation.protocols.spatial import Options
from misplace.engine.evaluation.ridge import fit_ridge
from misplace.engine.models import VisionTransformer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_encoder(image_size=24, patch_size=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            channels=3,
            width=64,
            depth=1,
            num_heads=2,
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
        )


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    root = render_dataset(tmp_path_factory.mktemp("poses") / "set", train=96, test=48, size=48, workers=1)
    return open_source(f"poses:{root}"), open_source(f"poses:{root}", split="test")


def study_of(train, test, said=None):
    people = (subjects.encoder_subject("random", small_encoder()), pixel_subject(24, 6))
    splits = (Split("train", train, torch.arange(len(train))), Split("test", test, torch.arange(len(test))))
    return Study(people, *splits, torch.device("cpu"), say=(said if said is not None else []).append)


# Ridge


@pytest.mark.parametrize("shape", [(60, 8), (30, 50)])
def test_ridge_equals_scikit_learn(shape):
    x, y = torch.randn(*shape, generator=generator()), torch.randn(shape[0], 3, generator=generator(1))
    rows = torch.randn(20, shape[1], generator=generator(2))
    mean, deviation = x.mean(0).double(), x.double().std(0, correction=0)
    oracle = Ridge(alpha=0.1 * shape[0]).fit(((x - mean) / deviation).numpy(), y.numpy())
    expected = oracle.predict(((rows - mean) / deviation).numpy())
    got = fit_ridge(x, y, penalties=(0.1,))(rows).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)  # the oracle's rows are fp64 from fp32, as ours


def test_ridge_finds_a_linear_law_and_predicts_the_mean_of_noise():
    x = torch.randn(400, 10, generator=generator())
    law = torch.randn(10, 2, generator=generator(1))
    rows = torch.randn(200, 10, generator=generator(2))
    assert torch.allclose(fit_ridge(x, x @ law)(rows), (rows @ law).double(), atol=1e-2)
    noise = torch.randn(400, 1, generator=generator(3))
    assert fit_ridge(x, noise)(rows).std() < 0.2 * noise.std()


def test_ridge_ignores_constant_columns_and_refuses_bad_features():
    x = torch.cat([torch.randn(50, 3, generator=generator()), torch.full((50, 1), 7.0)], dim=1)
    y = x[:, :1] * 2
    moved = x.clone()
    moved[:, 3] = -1e6
    assert torch.allclose(fit_ridge(x, y)(moved), y.double(), atol=1e-2)
    with pytest.raises(UserError, match="10 training images"):
        fit_ridge(x[:5], y[:5])
    with pytest.raises(UserError, match="not finite"):
        fit_ridge(x * float("nan"), y)


# Assignment


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_assignment_is_the_best_of_all(count):
    scores = torch.randn(30, count, count, generator=generator(), dtype=torch.float64)
    got = best_assignment(scores)
    for row, assigned in zip(scores.numpy(), got.numpy()):
        _, expected = linear_sum_assignment(row, maximize=True)
        assert (assigned == expected).all()
    if count == 4:
        every = list(itertools.permutations(range(4)))
        totals = torch.stack([sum(scores[:, i, p[i]] for i in range(4)) for p in every])
        assert got.tolist() == [list(every[i]) for i in totals.argmax(0)]


def test_assignment_is_a_permutation_where_all_is_equal():
    assert best_assignment(torch.zeros(3, 9, 9)).sort(1).values.tolist() == [list(range(9))] * 3


def test_assignment_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="n <= 9"):
        best_assignment(torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match="n, n"):
        best_assignment(torch.zeros(1, 3, 4))


# Pairs of crops


def test_targets_of_known_boxes():
    first, second = [0.2, 0.1, 0.4, 0.5], [0.5, 0.3, 0.9, 0.5]
    dy, dx, height, width = pair_targets(torch.tensor([first, second], dtype=torch.float64)).tolist()
    assert (dy, dx) == pytest.approx((0.1 / 0.4, 0.4 / 0.2))
    assert (height, width) == pytest.approx((math.log(0.5), math.log(2)))


def test_boxes_lie_inside_and_have_the_area_asked_for():
    boxes = draw_pairs(500, 2, (0.1, 0.4), generator())
    assert boxes.shape == (500, 2, 2, 4)
    assert boxes.min() >= 0 and boxes.max() <= 1
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert 0.1 <= area.min() < 0.12 and 0.38 < area.max() <= 0.4 + 1e-9


def test_a_crop_is_the_part_of_the_middle_square(tmp_path):
    from PIL import Image

    across = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (80, 120, 3))  # value = 2 x
    (tmp_path / "a").mkdir()
    Image.fromarray(across.copy()).save(tmp_path / "a" / "0.png")
    source = crops(open_source(str(tmp_path / "a")), {0: (0.25, 0.0, 0.75, 0.5)}, 40)
    crop = source.read(0)  # x from 20 + 0.25 * 80 = 40, 40 pixels
    assert crop.shape == (40, 40, 3)
    assert crop[0, 4:-4, 0].tolist() == [2 * x for x in range(44, 76)]


def r2(x, boxes, which, train=400):
    y = pair_targets(boxes)
    predicted = fit_ridge(x[:train], y[:train, which])(x[train:])
    return r_squared("e", "m", predicted, y[train:, which], y[:train, which].mean(0))


def null_bound(columns, train, test):
    """How far from 0 the R^2 of features that say nothing may lie.

    Fitting p of them costs chi2(p) / n of the variance, and what was fitted meets the test rows' noise with a deviation
    of 2 sqrt(p / n / m): the mean plus 4 deviations of both.
    """
    deviation = math.sqrt(2 * columns) / train + 2 * math.sqrt(columns / train / test)
    return columns / train + 4 * deviation


def test_perfect_features_have_r2_1():
    boxes = draw_pairs(700, 1, (0.1, 0.4), generator())[:, 0]
    for which in (POSITION, SCALE):
        found = r2(pair_targets(boxes).float(), boxes, which)
        assert found.value == pytest.approx(1, abs=1e-3) and found.low > 0.99 and found.chance == 0


def test_features_blind_to_position_know_the_scale_and_not_the_position():
    """Each crop's feature is the logarithm of its sides: all that an encoder blind to translation can have."""
    boxes = draw_pairs(1200, 1, (0.1, 0.4), generator())[:, 0]
    x = (boxes[..., 2:] - boxes[..., :2]).log().flatten(1).float()
    assert r2(x, boxes, SCALE, 800).value > 0.99
    assert abs(r2(x, boxes, POSITION, 800).value) < null_bound(4, 800, 400)


def test_random_features_and_shuffled_targets_have_r2_0():
    boxes = draw_pairs(1200, 1, (0.1, 0.4), generator())[:, 0]
    random = torch.randn(1200, 8, generator=generator(1))
    assert abs(r2(random, boxes, POSITION, 800).value) < null_bound(8, 800, 400)
    shuffled = pair_targets(boxes)[torch.randperm(1200, generator=generator(2))].float()
    assert abs(r2(shuffled, boxes, POSITION, 800).value) < null_bound(4, 800, 400)


def test_r2_of_the_training_mean_is_0_and_equals_scikit_learn():
    from sklearn.metrics import r2_score

    y = torch.randn(100, 2, generator=generator(), dtype=torch.float64)
    guess = y + 0.5 * torch.randn(100, 2, generator=generator(1), dtype=torch.float64)
    assert r_squared("e", "m", y.mean(0).expand(100, 2), y, y.mean(0)).value == pytest.approx(0)
    found = r_squared("e", "m", guess, y, y.mean(0), groups=torch.arange(100) // 2)
    assert found.value == pytest.approx(r2_score(y.numpy(), guess.numpy()))
    assert found.low < found.value < found.high
    assert math.isnan(r_squared("e", "m", guess, torch.ones(100, 2), torch.ones(2)).value)


# Puzzles


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_a_puzzle_put_together_is_the_picture(grid):
    images = torch.randint(0, 256, (5, 24, 24, 3), generator=generator(), dtype=torch.uint8)
    orders = draw_orders(5, grid * grid, generator(1))
    puzzle = shuffle(images, orders, grid)
    assert join(cut(images, grid), grid).equal(images)
    assert not puzzle.equal(images)
    assert cut(puzzle, grid)[2, 1].equal(cut(images, grid)[2, orders[2, 1]])
    assert reassemble(puzzle, orders, grid).equal(images)


def test_orders_are_uniform():
    orders = draw_orders(4800, 4, generator())
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 200).abs().max() < 4 * math.sqrt(200)


@pytest.mark.parametrize(("side", "grid"), [(8, 2), (8, 3), (7, 2), (14, 3), (2, 3)])
def test_shares_cover_each_tile_once(side, grid):
    weights = shares(side, grid).double()
    assert torch.allclose(weights.sum(1), torch.ones(grid * grid, dtype=torch.float64))
    assert torch.allclose(weights.sum(0), torch.full((side * side,), grid * grid / side**2, dtype=torch.float64))
    if side == 8 and grid == 2:
        assert (weights[1].view(8, 8)[:4, 4:] > 0).all() and weights[1].count_nonzero() == 16


def test_tile_features_are_means_of_the_tiles_tokens():
    subject = subjects.encoder_subject("random", small_encoder())
    images = torch.randint(0, 256, (3, 24, 24, 3), generator=generator(), dtype=torch.uint8)
    with torch.no_grad():
        patches = subject.tokens(images).patches.view(3, 4, 4, 64)
        found = tile_features(subject, images, 2)
    assert torch.allclose(found[:, 1], patches[:, :2, 2:].mean((1, 2)), atol=1e-5)
    assert tile_features(pixel_subject(24, 6), images, 3).shape == (3, 9, 6 * 6 * 3)


def test_sides_that_a_grid_does_not_divide():
    assert (cut_size(28, 3), cut_size(96, 3), cut_size(224, 3)) == (27, 96, 222)
    images = torch.randint(0, 256, (2, 27, 27, 1), generator=generator(), dtype=torch.uint8)
    assert resize(images, 28).shape == (2, 28, 28, 1) and resize(images, 27) is images


# The protocol


class Marked:
    """Pictures whose four quarters say where they belong by their colour, and nothing else."""

    name, channels, image_size, patch_size = "marked", 3, 24, 6
    mean, std, class_names = (0.5,) * 3, (0.2,) * 3, ()
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], dtype=np.uint8)

    def __init__(self, count, told=True, seed=0):
        self.count, self.told, self.seed = count, told, seed

    def __len__(self):
        return self.count

    def read(self, index):
        rng = np.random.default_rng((index, self.seed))
        noise = rng.integers(0, 6, (24, 24, 3), dtype=np.uint8)
        quarters = self.colours.reshape(2, 2, 3).repeat(12, axis=0).repeat(12, axis=1)
        return (quarters if self.told else 0 * quarters) + noise

    def path_of(self, index):
        return str(index)

    def label(self, index):
        return -1


def by_name(scores, encoder):
    return {s.measure: s for s in scores if s.encoder == encoder}


@pytest.mark.parametrize("encoder", ["random", "pixels"])
def test_marked_puzzles_are_all_solved_and_unmarked_ones_at_chance(encoder):
    said = []
    options = Options(linear=False, train_images=120, test_images=100)
    solved = by_name(spatial.run(study_of(Marked(120), Marked(100, seed=1), said), options), encoder)
    assert any("not classified" in line for line in said)
    assert not any("knn" in name for name in solved)
    assert solved["jigsaw 2x2 tiles in place"].value == 1 == solved["jigsaw 2x2 wholly in place"].value
    lost = by_name(spatial.run(study_of(Marked(120, told=False), Marked(100, told=False, seed=1)), options), encoder)
    tiles, whole = lost["jigsaw 2x2 tiles in place"], lost["jigsaw 2x2 wholly in place"]
    assert abs(tiles.value - 0.25) < 4 * math.sqrt(0.25 / 4 / 100)  # tiles right have mean 1 and variance 1 of 4
    assert abs(whole.value - 1 / 24) < 4 * math.sqrt(23 / 24**2 / 100)
    assert (tiles.chance, whole.chance) == (0.25, 1 / 24)


def test_the_protocol_on_poses(poses):
    train, test = poses
    options = Options(grid=3, pairs=2, k=5, linear=False)
    scores = spatial.run(study_of(train, test), options)
    found = by_name(scores, "random")
    assert list(found) == list(by_name(scores, "pixels"))
    assert list(found) == [
        "position R^2",
        "scale R^2",
        "jigsaw 3x3 tiles in place",
        "jigsaw 3x3 wholly in place",
        "intact, knn 5",
        "shuffled, knn 5",
        "reassembled, knn 5",
    ]
    assert found["jigsaw 3x3 wholly in place"].chance == 1 / math.factorial(9)
    assert found["intact, knn 5"].chance == 1 / 12
    assert scores == spatial.run(study_of(train, test), options)


def test_a_solved_puzzle_is_classified_as_the_intact_picture(poses, monkeypatch):
    """With the true order in place of the prediction, the reassembled row equals the intact one."""
    train, test = poses
    drawn = []
    monkeypatch.setattr(spatial, "draw_orders", lambda *a: drawn.append(draw_orders(*a)) or drawn[-1])
    monkeypatch.setattr(spatial, "best_assignment", lambda scores: drawn[-1])
    found = by_name(spatial.run(study_of(train, test), Options(linear=False, k=3)), "pixels")
    assert found["jigsaw 2x2 wholly in place"].value == 1
    assert found["reassembled, knn 3"].value == found["intact, knn 3"].value


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grid": 4}, "grid 4: 2 or 3"),
        ({"pairs": 0}, "pairs 0"),
        ({"area": (0.5, 0.2)}, "inside 0 to 1"),
        ({"area": (0.0, 0.2)}, "inside 0 to 1"),
        ({"feature": "tokens"}, "one of mean, class, both"),
        ({"test_images": 1}, "2 or more"),
    ],
)
def test_options_out_of_range(poses, wrong, message):
    with pytest.raises(UserError, match=message):
        spatial.run(study_of(*poses), dataclasses.replace(Options(), **wrong))
