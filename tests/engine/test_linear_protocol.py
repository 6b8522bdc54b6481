"""The linear protocol on sources whose right answer is known: pictures that tell the class, that do not, or lie."""

import math

import numpy as np
import pytest
import torch

from misplace.engine.commands.evaluate import Evaluate, open_study
from misplace.engine.encoder_file import SavedEncoder
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Split, Study, pixel_subject
from misplace.engine.evaluation.protocols.linear import Options, run

CLASSES, TRAIN, TEST = 4, 200, 400


class Made:
    """8 x 8 noise; where `tell`, a bright quarter is the class; labels: cyclic, or `label` of a number."""

    name, image_size, patch_size, channels = "made", 8, 4, 3
    mean, std, class_names = (0.5,) * 3, (0.5,) * 3, tuple("abcd")

    def __init__(self, tell=True, label=lambda index: index % CLASSES):
        self.tell, self.label = tell, label

    def __len__(self):
        return TRAIN + TEST

    def read(self, index):
        picture = np.random.default_rng(index).integers(0, 60, (8, 8, 3), dtype=np.uint8)
        if self.tell:
            row, column = divmod(index % CLASSES, 2)
            picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 180
        return picture

    def path_of(self, index):
        return f"picture {index}"


def study(source, subjects=None, said=None) -> Study:
    everything = torch.arange(len(source))
    train, test = Split("train", source, everything[:TRAIN]), Split("test", source, everything[TRAIN:])
    say = (lambda line: None) if said is None else said.append
    return Study(subjects or (pixel_subject(8, 4),), train, test, torch.device("cpu"), say=say)


def test_pictures_that_tell_the_class_are_all_right():
    said = []
    scores = run(study(Made(), said=said), Options(shots=(1, 5), draws=3))
    assert [s.measure for s in scores] == ["linear", "linear 1-shot", "linear 5-shot"]
    assert all((s.value, s.low, s.high, s.chance) == (1.0, 1.0, 1.0, 0.25) for s in scores)
    assert "learning rate" in said[0] and "deviation between draws 0.0%" in said[1] and len(said) == 3


@pytest.mark.parametrize("lie", ["pictures", "labels"])
def test_nothing_to_learn_is_chance(lie):
    """Of draws there are several over the same test images: their mean is no wider than one of them."""
    shuffled = np.random.default_rng(7).integers(0, CLASSES, TRAIN + TEST)
    source = Made(tell=False) if lie == "pictures" else Made(label=lambda index: int(shuffled[index]))
    for found in run(study(source), Options(shots=(3,))):
        assert abs(found.value - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / TEST)


def test_the_deviation_is_that_between_draws():
    said = []
    everything, few = run(study(Made(tell=False), said=said), Options(shots=(2,), epochs=1, draws=4))
    assert everything.deviation is None and few.deviation > 0
    assert f"deviation between draws {few.deviation:.1%}" in said[-1]
    (_, once) = run(study(Made(tell=False)), Options(shots=(2,), epochs=1, draws=1))
    assert once.deviation is None


def test_every_encoder_is_given_the_same_draws():
    first, again, third = (pixel_subject(8, 4) for _ in range(3))
    scores = run(study(Made(tell=False), (first, again, third)), Options(shots=(1,), epochs=1))
    assert len({(s.measure, s.value) for s in scores}) == 2


def test_another_seed_draws_other_images():
    made = study(Made(tell=False))
    one, other = (Study(made.subjects, made.train, made.test, made.device, seed, say=made.say) for seed in (0, 1))
    options = Options(shots=(1,), epochs=1, draws=2)
    assert run(one, options)[1].value != run(other, options)[1].value


@pytest.mark.parametrize(
    "label, options, reason",
    [
        (lambda index: -1, Options(), "no labels"),
        (lambda index: 2, Options(), "two classes"),
        (lambda index: int(index == 7), Options(), "single training image"),
        (lambda index: index % 4, Options(shots=(1, 51)), "51 shots: only 50 training images of class 0"),
        (lambda index: index % 4, Options(shots=(0,)), "1 or more"),
        (lambda index: index % 4, Options(draws=0), "--linear.draws 0"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(label, options, reason):
    said = []
    with pytest.raises(UserError, match=reason) as error:
        run(study(Made(label=label), said=said), options)
    assert not said and "\n" not in str(error.value)


def test_an_encoder_of_gray_images_cannot_see_colour(images):
    saved = SavedEncoder({}, {"channels": 1}, {}, 0)
    with pytest.raises(UserError, match=r"its encoder sees gray images, .* has colour ones"):
        open_study(saved, Evaluate(images / "run", data=str(images), device="cpu"))
