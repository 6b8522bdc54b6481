"""The protocol of parts: crops and windows, what is chosen, and the whole of it on a small rendered set."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.engine.commands.evaluate import main
from misplace.engine.data import Part, centre_mask
from misplace.engine.data.evaluation import centre_view
from misplace.engine.data.poses import PART_KINDS, PART_NAMES, PosesSource, render_dataset
from misplace.engine.data.poses.parts import PART_CLASSES
from misplace.engine.errors import UserError
from misplace.engine.evaluation import Split, Study, Subject
from misplace.engine.evaluation.part_crops import choose_parts, load_parts, window
from misplace.engine.evaluation.protocols.parts import MEASURES, Options, run
from misplace.engine.evaluation.ratio_scores import mean_ratio
from misplace.engine.evaluation.segmentation_probe import overlaps, upsampled
from misplace.engine.evaluation.subjects import Tokens
from misplace.engine.trainer import pretrain

TRAIN, TEST, SIZE, PATCH = 96, 48, 48, 8
SIDE = SIZE // PATCH
SMALL = Options(
    num_train_parts=240,
    num_test_parts=120,
    num_train_objects=TRAIN,
    num_test_objects=TEST,
    attentive_steps=60,
    segmentation_steps=60,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return render_dataset(tmp_path_factory.mktemp("poses") / "set", train=TRAIN, test=TEST, size=SIZE, workers=1)


def study_of(folder, *subjects, seed=0):
    train, test = (
        Split(name, PosesSource(folder, name), torch.arange(count))
        for name, count in (("train", TRAIN), ("test", TEST))
    )
    lines = []
    return Study(subjects, train, test, torch.device("cpu"), seed, say=lines.append), lines


def made_subject(tokens, name="made"):
    """An encoder of one block whose tokens of images uint8 [B, S, S, C] are a function of them."""
    return Subject(name, name, SIZE, PATCH, 1, tokens, lambda images, which: [tokens(images).patches])


def noise(images):
    """Random features: nothing of the picture is in them but a seed."""
    generator = torch.Generator().manual_seed(int(images.long().sum()))
    drawn = torch.randn(len(images), 1 + SIDE * SIDE, 24, generator=generator)
    return Tokens(drawn[:, 0], drawn[:, 1:])


def alike(images):
    """Features that are the same for all pictures."""
    return Tokens(torch.ones(len(images), 12), torch.ones(len(images), SIDE * SIDE, 12))


class Told(PosesSource):
    """Pictures that say the answer: the mask's class in every pixel of the whole picture, the part's in its crop."""

    def read(self, i):
        return np.repeat((30 * self.part_mask(i))[:, :, None], 3, 2)


def test_kinds_are_the_classes_of_poses(folder):
    source = PosesSource(folder, "test")
    assert PART_CLASSES == ("head", "torso", "upper-arm", "lower-arm", "upper-leg", "lower-leg")
    for i in range(12):
        mask, parts = source.mask(i), source.parts(i)
        assert [PART_CLASSES[part.part_class] for part in parts] == list(PART_KINDS)
        for number, part in enumerate(parts):
            ys, xs = np.nonzero(mask == 1 + number)
            assert part.visible == (source.annotation(i).visibility[number] >= 0.25 and len(xs) > 0)
            if part.visible:
                extent = max(np.ptp(xs), np.ptp(ys)) + 1
                assert part.side == 1.25 * extent
                assert abs(xs + 0.5 - part.x).max() <= part.side / 2 and abs(ys + 0.5 - part.y).max() <= part.side / 2
        kinds = np.array([0, *(1 + PART_CLASSES.index(kind) for kind in PART_KINDS)])
        assert np.array_equal(source.part_mask(i), kinds[mask])
    assert len(PART_NAMES) == 10


@pytest.mark.parametrize("content", [b"", b"no mask", "values", None])
def test_a_damaged_mask_is_named(tmp_path, content):
    source = PosesSource(render_dataset(tmp_path / "set", train=2, test=0, size=32, workers=1))
    path = source.root / source.annotation(1).mask
    path.unlink()
    if content == "values":
        Image.fromarray(np.full((32, 32), 11, dtype=np.uint8)).save(path)
    elif content is not None:
        path.write_bytes(content)
    for read in (source.parts, source.part_mask):
        with pytest.raises(UserError, match=path.name):
            read(1)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((50, 40, 20), (40, 30, 60, 50)),
        ((0, 40, 20), (0, 30, 20, 50)),  # moved inside
        ((99, 79, 20), (80, 60, 100, 80)),
        ((50, 40, 500), (10, 0, 90, 80)),  # as large as the picture allows
        ((50, 40, 0), (49.5, 39.5, 50.5, 40.5)),
        ((101, 40, 20), None),
        ((50, -1, 20), None),
    ],
)
def test_window(place, expected):
    assert window(Part(0, *place, True), 100, 80) == expected


def test_mask_lies_under_the_picture():
    """A mask and a picture of the same squares: after both were cut out they agree away from their borders."""
    squares = np.kron(np.random.default_rng(0).integers(0, 2, (8, 10)), np.ones((16, 16))).astype(np.uint8)
    picture = Image.fromarray(255 * squares)
    for size in (32, 96, 112, 150):
        seen, mask = centre_view(picture, size)[:, :, 0], centre_mask(squares, size)
        certain = (seen < 20) | (seen > 235)
        assert certain.mean() > 0.5
        assert np.array_equal(mask[certain], (seen[certain] > 127).astype(np.uint8))
    same = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(centre_mask(same, 8), same)


def test_chosen_parts_are_visible_few_of_an_image_and_the_same_again(folder):
    study, _ = study_of(folder)
    table = choose_parts(study.train, 100, per_image=3, seed=5)
    assert len(table.parts) == len(table.images) == 100
    assert all(part.visible for part in table.parts)
    assert torch.bincount(table.images).max() == 3
    for image, part in zip(table.images.tolist(), table.parts):
        assert part in study.train.source.parts(image)
    again = choose_parts(study.train, 100, per_image=3, seed=5)
    assert torch.equal(again.images, table.images) and again.parts == table.parts
    assert choose_parts(study.train, 100, per_image=3, seed=6).parts != table.parts
    heads = choose_parts(study.train, 1000, per_image=10, classes=("head", "torso"))
    assert {part.part_class for part in heads.parts} == {0, 1}


def test_crops_show_their_part(folder):
    """Pictures of the answers: the middle of nearly every crop has the colour of its class."""
    study, _ = study_of(folder)
    split = study.test._replace(source=Told(folder, "test"))
    table = choose_parts(split, 200, per_image=5)
    made = list(load_parts(table, 24))
    crops, rows = torch.cat([c for c, _ in made]), torch.cat([r for _, r in made])
    assert crops.shape == (200, 24, 24, 3) and rows.tolist() == list(range(200))
    shown = torch.tensor([[(crop[6:18, 6:18, 0] - 30.0 * (1 + c)).abs().min() for c in range(6)] for crop in crops])
    truth = torch.tensor([part.part_class for part in table.parts])
    assert (shown[torch.arange(200), truth] < 8).double().mean() > 0.95


def test_parts_that_cannot_be_shown_are_left_out_and_named(folder, caplog):
    study, _ = study_of(folder)
    table = choose_parts(study.test, 40, per_image=4)
    broken, outside = int(table.images[4]), 0

    class Broken(PosesSource):
        def read(self, i):
            return b"" if i == broken else super().read(i)

    parts = (table.parts[0]._replace(x=900.0), *table.parts[1:])
    rows = torch.cat([r for _, r in load_parts(table._replace(source=Broken(folder, "test"), parts=parts), 16)])
    assert outside not in rows and not (table.images[rows] == broken).any()
    assert len(rows) == 40 - 1 - int((table.images == broken).sum())
    assert "lies outside the picture" in caplog.text and "the file is empty" in caplog.text


def test_perfect_features_are_all_right(folder):
    """Tokens that say the class, layers that say what is in patches of 2 x 2 pixels: only borders of parts are off."""
    study, _ = study_of(folder)
    sources = [Told(folder, split.name) for split in (study.train, study.test)]
    study = dataclasses.replace(
        study, train=study.train._replace(source=sources[0]), test=study.test._replace(source=sources[1])
    )
    answers: dict[bytes, int] = {}
    for split in (study.train, study.test):
        for images, numbers in study.batches(split, SIZE):
            answers |= {i.numpy().tobytes(): split.source.label(n) for i, n in zip(images, numbers.tolist())}
        limit = SMALL.num_train_parts if split.name == "train" else SMALL.num_test_parts
        table = choose_parts(split, limit, per_image=SMALL.parts_per_image)
        for images, rows in load_parts(table, SIZE):
            answers |= {i.numpy().tobytes(): table.parts[r].part_class for i, r in zip(images, rows.tolist())}

    def told_class(images):
        classes = torch.tensor([answers[image.numpy().tobytes()] for image in images])
        token = torch.nn.functional.one_hot(classes, 12).float()
        return Tokens(token, token[:, None].expand(-1, SIDE * SIDE, -1))

    def shares(images, which):
        values = (images[..., 0] / 30).round().long().clamp(max=6).view(-1, SIZE // 2, 2, SIZE // 2, 2)
        return [torch.nn.functional.one_hot(values, 7).float().mean((2, 4)).flatten(1, 2)]

    subject = dataclasses.replace(made_subject(told_class), layers=shares)
    options = dataclasses.replace(SMALL, segmentation_steps=80)
    scores = {s.measure: s for s in run(dataclasses.replace(study, subjects=(subject,)), options)}
    assert tuple(scores) == MEASURES
    for measure in MEASURES[:6]:
        assert (scores[measure].value, scores[measure].low, scores[measure].high) == (1.0, 1.0, 1.0)
    masks = torch.stack([torch.tensor(centre_mask(sources[1].part_mask(i), SIZE)) for i in range(TEST)])
    for name, truth, num_classes in (("part", masks, 7), ("object", (masks > 0).to(torch.uint8), 2)):
        assert scores[f"{name} segmentation mIoU"].value > upsampled_shares(truth, num_classes) - 0.03


def upsampled_shares(masks, num_classes):
    """mIoU of the class whose share in patches of 2 x 2 pixels, upsampled, is largest: what the tokens can say."""
    shares = torch.nn.functional.one_hot(masks.long(), num_classes).float().permute(0, 3, 1, 2)
    guess = upsampled(torch.nn.functional.avg_pool2d(shares, 2), SIZE).argmax(1)
    intersection, union = overlaps(guess, masks, num_classes)
    return float(mean_ratio(intersection.double().sum(0), union.double().sum(0)))


def test_random_features_are_at_chance(folder):
    study, _ = study_of(folder, made_subject(noise))
    for found in run(study, SMALL):
        if "segmentation" in found.measure:
            assert found.value < found.chance + 0.02  # the background, or less where parts are guessed
        elif "mAP" in found.measure:
            assert found.low - 0.02 < found.chance < found.high + 0.02
        else:
            count, classes = (120, 6) if "part" in found.measure else (TEST, 12)
            assert abs(found.value - 1 / classes) < 4 * math.sqrt(0.25 / count)


def test_same_seed_same_scores_and_rows_of_every_subject(folder):
    study, lines = study_of(folder, made_subject(noise), made_subject(alike, "alike"), seed=3)
    options = dataclasses.replace(
        SMALL, num_train_parts=60, num_test_parts=50, num_train_objects=24, attentive_steps=4, segmentation_steps=4
    )
    scores = run(study, options)
    assert scores == run(study, options)
    assert [(s.measure, s.encoder) for s in scores] == [(m, e) for m in MEASURES for e in ("made", "alike")]
    assert all(0 <= s.low <= s.value <= s.high <= 1 and s.chance is not None for s in scores)
    assert lines == []


@pytest.mark.parametrize("same_image", [False, True])
def test_parts_of_the_same_image_are_ranked_only_if_asked(folder, same_image):
    """Features that are all alike: AP is the share of answers among what is ranked, counted here one by one."""
    study, _ = study_of(folder, made_subject(alike))
    options = dataclasses.replace(
        SMALL, parts_per_image=10, attentive_steps=2, segmentation_steps=2, same_image=same_image
    )
    got = run(study, options)[0]
    table = choose_parts(study.test, options.num_test_parts, per_image=10)
    kinds = [part.part_class for part in table.parts]
    items = list(zip(table.images.tolist(), kinds))
    shares: dict[int, list[float]] = {}
    for query, (image, kind) in enumerate(items):
        ranked = [k for i, (other, k) in enumerate(items) if i != query and (same_image or other != image)]
        shares.setdefault(kind, []).append(ranked.count(kind) / len(ranked))
    assert got.value == pytest.approx(np.mean([np.mean(of_kind) for of_kind in shares.values()]), abs=1e-9)


class WithoutMasks(PosesSource):
    """Parts alone, as COCO's: neither masks nor classes."""

    has_masks = False
    class_names = ()

    def label(self, i):
        return -1


def test_what_the_source_lacks_is_said(folder):
    study, lines = study_of(folder, made_subject(noise))
    study = dataclasses.replace(
        study,
        train=study.train._replace(source=WithoutMasks(folder, "train")),
        test=study.test._replace(source=WithoutMasks(folder, "test")),
    )
    scores = run(study, dataclasses.replace(SMALL, attentive_steps=3))
    assert [s.measure for s in scores] == ["part retrieval mAP", "part linear", "part attentive"]
    assert len(lines) == 2 and "no masks" in lines[0] + lines[1] and "no object classes" in lines[0] + lines[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_test_parts": 0}, "--parts.num-test-parts 0"),
        ({"segmentation_steps": -1}, "--parts.segmentation-steps -1"),
        ({"classes": ("head", "wing")}, "'wing': poses has head, torso"),
        ({"classes": ("head",)}, "two classes are needed"),
        ({"num_train_parts": 1}, "two classes are needed"),
    ],
)
def test_bad_options_are_one_line(folder, change, said):
    study, _ = study_of(folder, made_subject(noise))
    with pytest.raises(UserError, match=said) as error:
        run(study, dataclasses.replace(SMALL, **change))
    assert "\n" not in str(error.value)


def test_command_on_a_run_and_on_a_source_without_parts(runs, images, folder, tmp_path, capsys):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run", steps=1)
    pretrain(config)
    capsys.readouterr()
    flags = ["--num-train", "96", "--num-test", "24", "--parts.num-train-parts", "60", "--parts.num-test-parts", "40"]
    steps = ["--parts.attentive-steps", "3", "--parts.segmentation-steps", "3"]
    out = tmp_path / "parts.json"
    command = [str(tmp_path / "run"), "--protocol", "parts", *flags, *steps]
    assert main([*command, "--data", f"poses:{folder}", "--out", str(out)]) == 0
    line = json.loads(out.read_text())
    assert line["protocol"] == "parts" and len(line["rows"]) == 3 * len(MEASURES)
    assert {row["encoder"] for row in line["rows"]} == {"trained", "random", "pixels"}
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line
    with pytest.raises(UserError, match="does not say where parts are"):
        main(command)
