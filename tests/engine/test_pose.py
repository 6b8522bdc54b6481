"""Classification at every level of a hierarchy, where the right answer is known."""

import math
from types import SimpleNamespace

import pytest
import torch

from misplace.engine.data.poses import CLASS_NAMES, HIERARCHY, Level
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Split, Study
from misplace.engine.evaluation.protocols import pose
from misplace.engine.evaluation.protocols.pose import Options, classes_at, near_miss_chance, near_misses
from misplace.engine.evaluation.study import Labelled

GROUP, FAMILY, POSE = HIERARCHY
N = 600


class Made(Study):
    """A study whose features are made: features[split] [n, D]."""

    def features(self, subject, split, kind="mean"):
        return Labelled(subject.features[split.name], self.labels(split, split.indices), split.indices)


def source(labels, levels=HIERARCHY):
    return SimpleNamespace(
        name="made", class_names=CLASS_NAMES, hierarchy=levels, label=lambda i: int(labels[i]), __len__=len
    )


def study(train_features, test_features, labels=None, levels=HIERARCHY, said=None, test_labels=None):
    labels = torch.arange(N) % 12 if labels is None else labels
    test_labels = labels if test_labels is None else test_labels
    subject = SimpleNamespace(name="made", features={"train": train_features, "test": test_features})
    splits = [Split(n, source(t, levels), torch.arange(len(t))) for n, t in (("train", labels), ("test", test_labels))]
    return Made((subject,), *splits, torch.device("cpu"), say=(said if said is not None else []).append)


def table(scores):
    return {s.measure: s for s in scores}


def one_hot(level):
    return torch.nn.functional.one_hot(classes_at(level, torch.arange(N) % 12)).float()


def test_perfect_features_are_right_at_every_level():
    found = table(pose.run(study(one_hot(POSE), one_hot(POSE)), Options(k=10)))
    levels, names = (("group (3)", 1 / 3), ("family (6)", 1 / 6), ("pose (12)", 1 / 12)), ("knn 10", "linear")
    expected = {f"{level}, {name}": (1, chance) for name in names for level, chance in levels}
    assert {name: (s.value, s.chance) for name, s in found.items()} == expected


def test_features_that_know_the_group_only():
    """Right at the coarse level, one in four at the fine one, and every miss inside the right group."""
    generator = torch.Generator().manual_seed(0)
    x, y = (one_hot(GROUP) + 1e-3 * torch.randn(N, 3, generator=generator) for _ in range(2))
    found = table(pose.run(study(x, y), Options(linear=False)))
    assert found["group (3), knn 20"].value == 1
    assert abs(found["pose (12), knn 20"].value - 1 / 4) < 4 * math.sqrt(3 / 16 / N)
    assert found["pose wrong, group right, knn 20"].value == 1
    wrong = round(N * (1 - found["pose (12), knn 20"].value))
    family = found["pose wrong, family right, knn 20"]  # one of the three wrong poses of the group is of the family
    assert abs(family.value - 1 / 3) < 4 * math.sqrt(2 / 9 / wrong)


@pytest.mark.parametrize("kind", ["random features", "shuffled labels"])
def test_nothing_known_is_at_chance(kind):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % 12
    x, y = (torch.randn(N, 16, generator=generator) for _ in range(2))
    if kind == "random features":
        made = study(x, y)
    else:  # each image is its own nearest neighbour, under a label of another
        made = study(x, x, labels=labels[torch.randperm(N, generator=generator)], test_labels=labels)
    found = table(pose.run(made, Options(k=1)))
    for name, s in found.items():
        if "wrong" not in name:
            assert abs(s.value - s.chance) < 4 * math.sqrt(s.chance * (1 - s.chance) / N), name
    # k = 1 over balanced classes: each wrong pose as likely as another
    for level, chance in (("group", 3 / 11), ("family", 1 / 11)):
        s = found[f"pose wrong, {level} right, knn 1"]
        assert s.chance == pytest.approx(chance)
        assert abs(s.value - chance) < 4 * math.sqrt(chance * (1 - chance) / (0.9 * N))


def test_near_misses_by_hand():
    labels = torch.tensor([0, 0, 0, 4, 4])
    guesses = torch.tensor([0, 1, 11, 5, 6])  # right; same family; another group; same family; same group
    assert near_misses(FAMILY, POSE, guesses, labels).tolist() == [1, 0, 1, 0]
    assert near_misses(GROUP, POSE, guesses, labels).tolist() == [1, 0, 1, 1]
    uneven = Level("uneven", ("a", "b"), (0, 1, 1, 1))
    assert near_miss_chance(uneven, torch.tensor([0, 1])) == pytest.approx((0 + 2 / 3) / 2)


def test_chance_is_that_of_the_commonest_class():
    labels = torch.tensor([0] * 400 + [4] * 200)
    found = table(pose.run(study(torch.ones(N, 4), torch.ones(N, 4), labels=labels), Options(linear=False)))
    assert found["pose (12), knn 20"].chance == pytest.approx(400 / N) == found["group (3), knn 20"].chance
    assert pose.commonest_share(torch.tensor([0, 0, 1]), torch.tensor([1, 1]), 3) == 1 / 3


def test_a_level_with_one_class_is_left_out_with_a_line():
    said = []
    labels = torch.arange(N) % 4  # all of the first group
    x = torch.nn.functional.one_hot(labels).float()
    found = table(pose.run(study(x, x, labels=labels, said=said), Options(linear=False, k=5)))
    assert list(found) == ["family (6), knn 5", "pose (12), knn 5"]
    assert said == ["group: all training images are of one class; left out"]


def test_a_class_with_a_single_image_can_be_learned_from():
    labels = torch.cat([torch.arange(N - 1) % 11, torch.tensor([11])])
    x = torch.nn.functional.one_hot(labels, 12).float()
    assert table(pose.run(study(x, x, labels=labels), Options(k=1)))["pose (12), linear"].value == 1


def test_a_source_without_hierarchy_and_a_bad_option():
    with pytest.raises(UserError, match="no hierarchy of classes: give --data poses or yoga82:DIR"):
        pose.run(study(one_hot(POSE), one_hot(POSE), levels=()), Options(linear=False))
    with pytest.raises(UserError, match="one of mean, class, both"):
        pose.run(study(one_hot(POSE), one_hot(POSE)), Options(feature="x"))
    with pytest.raises(UserError, match="one neighbour or more"):
        pose.run(study(one_hot(POSE), one_hot(POSE)), Options(linear=False, k=0))
