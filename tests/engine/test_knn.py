"""k-NN against a brute force and scikit-learn; features of a source, in order and without gaps."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from misplace.engine.errors import UserError
from misplace.engine.evaluation import choose_images, extract, knn, pixels, usable_ks


def blobs(count, classes=5, width=16, spread=1.0, seed=0):
    """Overlapping clusters: features [count, width] and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = centres[labels] + spread * rng.normal(size=(count, width))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def brute_force(train, train_labels, test, k, temperature):
    """The predicted class of each test row, in numpy and float64, one row at a time."""
    train = train.numpy().astype(np.float64)
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    predicted = []
    for row in test.numpy().astype(np.float64):
        similarity = train @ (row / np.linalg.norm(row))
        votes = {}
        for i in np.argsort(-similarity, kind="stable")[:k]:
            label = int(train_labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(similarity[i] / temperature)
        predicted.append(max(sorted(votes), key=votes.get))
    return np.array(predicted)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_brute_force(temperature):
    train, train_labels = blobs(300, spread=2.0)
    test, test_labels = blobs(120, spread=2.0, seed=1)
    got = knn(train, train_labels, test, test_labels, ks=(1, 10, 200), temperature=temperature)
    for k, accuracy in got.items():
        expected = (brute_force(train, train_labels, test, k, temperature) == test_labels.numpy()).mean()
        assert accuracy == pytest.approx(expected, abs=1e-12)
        assert 0.3 < accuracy < 1  # hard enough that k matters


@pytest.mark.parametrize("k", [1, 20])
def test_equals_scikit_learn(k):
    train, train_labels = blobs(400, spread=2.0)
    test, test_labels = blobs(150, spread=2.0, seed=1)
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = classifier.fit(train.numpy(), train_labels.numpy()).score(test.numpy(), test_labels.numpy())
    assert knn(train, train_labels, test, test_labels, ks=(k,))[k] == pytest.approx(expected, abs=1e-12)


def test_perfect_features_are_all_right():
    labels = torch.arange(200) % 10
    features = torch.eye(10)[labels]
    assert knn(features, labels, features, labels, ks=(1, 10, 20)) == {1: 1.0, 10: 1.0, 20: 1.0}


def test_shuffled_labels_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(1000, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    labels = torch.randint(0, 4, (2000,), generator=generator)
    accuracy = knn(train, labels[:1000], test, labels[1000:], ks=(20,))[20]
    assert abs(accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


def test_chunks_change_nothing():
    """Small whole numbers: every product is exact, so ties are real ties however the rows are cut."""
    generator = torch.Generator().manual_seed(0)
    train = torch.nn.functional.one_hot(torch.randint(0, 6, (90,), generator=generator)).float()
    labels = torch.randint(0, 3, (90,), generator=generator)
    whole = knn(train, labels, train, labels, ks=(1, 7, 50))
    for chunk in (1, 7, 89, 90, 500):
        assert knn(train, labels, train, labels, ks=(1, 7, 50), chunk=chunk) == whole


def test_equal_similarities_go_to_the_lower_index():
    train = torch.ones(6, 2)
    labels = torch.tensor([2, 0, 1, 1, 1, 1])
    test = torch.ones(1, 2)
    for right in (0, 1, 2):
        accuracy = knn(train, labels, test, torch.tensor([right]), ks=(1,))[1]
        assert accuracy == (right == 2)


def test_equal_votes_go_to_the_lower_class():
    train, labels = torch.ones(2, 2), torch.tensor([7, 3])
    assert knn(train, labels, torch.ones(1, 2), torch.tensor([3]), ks=(2,)) == {2: 1.0}


def test_opposite_features_and_small_temperature_do_not_underflow():
    """exp(-1 / 0.001) is 0 in float64: the nearest image must count all the same."""
    train, labels = torch.tensor([[-1.0, 0.0], [-1.0, 0.2]]), torch.tensor([1, 4])
    test = torch.tensor([[1.0, 0.0]])
    assert knn(train, labels, test, torch.tensor([4]), ks=(2,), temperature=1e-3) == {2: 1.0}


def test_low_precision_features_are_compared_in_fp32():
    train, train_labels = blobs(200)
    test, test_labels = blobs(80, seed=1)
    half = knn(train.bfloat16(), train_labels, test.bfloat16(), test_labels, ks=(10,))
    same = knn(train.bfloat16().float(), train_labels, test.bfloat16().float(), test_labels, ks=(10,))
    assert half == same


def test_labels_need_not_be_contiguous_and_unseen_ones_are_wrong():
    features = torch.eye(3)
    labels = torch.tensor([10, 500, 3])
    assert knn(features, labels, features, torch.tensor([10, 500, 77]), ks=(1,))[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_labels": torch.zeros(4, dtype=torch.int64)}, "two classes"),
        ({"train_labels": torch.tensor([0, 1, -1, 1])}, "needs labels"),
        ({"test_labels": torch.full((4,), -1)}, "needs labels"),
        ({"test_features": torch.full((4, 4), torch.nan)}, "not finite"),
        ({"train_features": torch.zeros(0, 4), "train_labels": torch.zeros(0)}, "0 training features"),
        ({"ks": (5,)}, r"1\.\.4"),
        ({"ks": (0, 1)}, r"1\.\.4"),
        ({"ks": ()}, r"1\.\.4"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_input_is_one_line(change, said):
    labels = torch.tensor([0, 1, 0, 1])
    arguments = dict(train_features=torch.eye(4), train_labels=labels, test_features=torch.eye(4))
    arguments |= dict(test_labels=labels, ks=(1,)) | change
    with pytest.raises(UserError, match=said) as error:
        knn(**arguments)
    assert "\n" not in str(error.value)


def test_usable_ks_names_what_it_drops():
    lines = []
    assert usable_ks((10, 20, 100, 200), 20, lines.append) == (10, 20)
    assert len(lines) == 1 and "100, 200" in lines[0] and "20 training" in lines[0]
    assert usable_ks((10, 20), 20, lines.append) == (10, 20)
    assert len(lines) == 1


class Numbered:
    """A source whose image i is filled with the value i; `broken` ones cannot be read."""

    name, image_size, patch_size, channels = "numbered", 8, 4, 3
    mean, std, class_names = (0.5,) * 3, (0.5,) * 3, ("even", "odd")

    def __init__(self, count, broken=(), labelled=True):
        self.count, self.broken, self.labelled = count, broken, labelled

    def __len__(self):
        return self.count

    def read(self, index):
        if index in self.broken:
            raise FileNotFoundError(index)
        return np.full((8, 8, 3), index, dtype=np.uint8)

    def path_of(self, index):
        return f"image {index}"

    def label(self, index):
        return index % 2 if self.labelled else -1


def first_pixel(images):
    return images[:, 0, 0, :1].float()


def test_extract_keeps_the_order_and_leaves_out_broken_images():
    indices = torch.tensor([9, 2, 7, 30, 4])
    features, labels = extract(first_pixel, Numbered(40, broken=(7,)), indices, 8, batch_size=2)
    assert features.dtype == torch.float32 and labels.dtype == torch.int64
    assert features[:, 0].tolist() == [9, 2, 30, 4]
    assert labels.tolist() == [1, 0, 0, 0]


def test_extract_does_not_depend_on_the_batch_size():
    indices = torch.arange(11)
    whole = extract(pixels, Numbered(20), indices, 8)
    cut = extract(pixels, Numbered(20), indices, 8, batch_size=3)
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])


def test_extract_says_why_it_cannot():
    with pytest.raises(UserError, match="numbered has no labels"):
        extract(first_pixel, Numbered(4, labelled=False), torch.arange(4), 8)
    with pytest.raises(UserError, match="none of the 4 images"):
        extract(first_pixel, Numbered(4, broken=range(4)), torch.arange(4), 8)


def test_choose_images_from_two_sources():
    train, test = choose_images(Numbered(100), Numbered(30), num_train=40, num_test=50)
    assert len(set(train.tolist())) == 40 and train.max() > 40  # a permutation's start, not the first ones
    assert sorted(test.tolist()) == list(range(30))


@pytest.mark.parametrize(("count", "sizes"), [(7000, (5000, 2000)), (70, (50, 20)), (2, (1, 1)), (9000, (5000, 2000))])
def test_choose_images_cuts_one_source_in_two(count, sizes):
    train, test = choose_images(Numbered(count))
    assert (len(train), len(test)) == sizes
    assert not set(train.tolist()) & set(test.tolist())
    again = choose_images(Numbered(count))
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])


def test_choose_images_needs_two():
    with pytest.raises(UserError, match="too few"):
        choose_images(Numbered(1))


def test_pixels_shrink_and_standardise():
    images = torch.randint(0, 256, (3, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = pixels(images)
    assert features.shape == (3, 32 * 32 * 3)
    assert features.mean(1).abs().max() < 1e-5 and (features.std(1) - 1).abs().max() < 1e-4
    assert pixels(images[:, :28, :28, :1]).shape == (3, 28 * 28)
    assert torch.isfinite(pixels(torch.zeros(1, 28, 28, 1, dtype=torch.uint8))).all()
    brighter = (images[:, :8, :8] // 4).contiguous()
    torch.testing.assert_close(pixels(brighter), pixels(brighter + 100), atol=1e-5, rtol=0)
