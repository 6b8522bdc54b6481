"""The DALI pipeline gives what Pillow's gives: to the bit with native views, within a stated tolerance without."""

import dataclasses
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.engine.data import AugmentConfig, make_loader, native_views, open_source, pipelines
from misplace.engine.data.dali import StepInputsOf, graph
from misplace.engine.data.dali.jpeg_header import plain_jpeg_size
from misplace.engine.errors import UserError

SETTINGS = {"batch_size": 8, "num_views": 2, "image_size": 48, "augment": AugmentConfig(), "seed": 11}
PLAIN = AugmentConfig(
    crop_scale=(1.0, 1.0), jitter_p=0.0, grayscale_p=0.0, blur_p=(0.0, 0.0), solarize_p=(0.0, 0.0), flip_p=0.0
)
UNBLURRED = dataclasses.replace(PLAIN, crop_scale=(0.08, 1.0), jitter_p=0.8, grayscale_p=0.2, flip_p=0.5)
NUM_IMAGES = 24


def photograph(seed: int, width: int = 200, height: int = 150) -> Image.Image:
    """Edges, gradients and grain, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """JPEGs of many sizes, most larger than a view and some smaller, gray, progressive and without subsampling too."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(NUM_IMAGES):
        image = photograph(i, 40 + 17 * i, 300 - 9 * i)
        options = {"progressive": i % 3 == 1, "subsampling": (0, 2)[i % 2], "quality": 90}
        (image.convert("L") if i % 7 == 3 else image).save(root / f"{i:02}.jpg", **options)
    return open_source(str(root))


def batches(source, count, pipeline="dali", **settings):
    """pipeline: "graph" is DALI alone, as on a GPU, and here on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if pipeline == "graph":
            patch.setattr(native_views, "available", lambda: False)
        name = "pillow" if pipeline == "pillow" else "dali"
        with make_loader(source, **{**SETTINGS, "pipeline": name, **settings}) as made:
            return [next(made) for _ in range(count)]


needs_native = pytest.mark.skipif(not native_views.available(), reason="the extension is not built")
both = pytest.mark.parametrize("pipeline", ["dali", "graph"])


def same(a, b) -> bool:
    return (
        all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        and torch.equal(a.index, b.index)
        and (a.epoch, a.failures) == (b.epoch, b.failures)
    )


def same_all(left, right) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def differences(source, augment, **settings) -> torch.Tensor:
    """|DALI - Pillow| of every value of an epoch, in levels: [values]."""
    of = [batches(source, NUM_IMAGES // 8, pipeline, augment=augment, **settings) for pipeline in ("graph", "pillow")]
    pairs = [pair for a, b in zip(*of, strict=True) for pair in zip(a.views, b.views, strict=True)]
    return torch.cat([(ours.int() - theirs.int()).abs().flatten() for ours, theirs in pairs]).float()


@needs_native
@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(saturation=0.0, hue=0.0, grayscale_p=0.0),
        AugmentConfig(local_views=2, local_size=17),
        AugmentConfig(blur_sigma=(0.1, 30.0), solarize_p=(0.5, 0.5), solarize_threshold=60),
        UNBLURRED,
    ],
    ids=["moco v3", "brightness and contrast", "multi-crop", "blur beyond the view", "unblurred"],
)
def test_native_views_are_pillows_to_the_bit(photographs, augment):
    """Of large, small, tall and wide pictures, at a size that no vector divides."""
    for size in (48, 61):
        ours, theirs = (batches(photographs, 3, name, image_size=size, augment=augment) for name in ("dali", "pillow"))
        assert same_all(ours, theirs)


# op -> what is switched on, mean and largest difference in levels. Pillow rounds to whole levels between the two passes
# of its resize, and blurs by three boxes, repeating the border, where DALI has a Gaussian and mirrors it.
OPERATIONS = {
    "crop, resize": ({"crop_scale": (0.08, 1.0)}, 0.3, 6),
    "flip": ({"flip_p": 1.0}, 0.3, 6),
    "jitter": ({"jitter_p": 1.0}, 0.4, 8),
    "grayscale": ({"grayscale_p": 1.0}, 0.3, 6),
    "blur": ({"blur_p": (1.0, 1.0)}, 0.8, 30),
    "all of them but blur": ({**vars(UNBLURRED)}, 0.4, 8),
}  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_agrees_with_pillows(photographs, operation):
    change, mean, largest = OPERATIONS[operation]
    found = differences(photographs, dataclasses.replace(PLAIN, **change))
    print(f"{operation}: mean {found.mean():.3f}, largest {found.max():.0f}")
    assert found.mean() <= mean and found.max() <= largest


def test_jitter_as_a_gpu_computes_it(photographs, monkeypatch):
    """The offset added apart, since it is on the GPU where an operator's own offset has to come from the host."""
    recolour = graph._recolour
    monkeypatch.setattr(graph, "_recolour", lambda view, on_gpu, given: recolour(view, True, given))
    _, mean, largest = OPERATIONS["jitter"]
    found = differences(photographs, dataclasses.replace(PLAIN, jitter_p=1.0))
    assert found.mean() <= mean and found.max() <= largest


def test_decoding_is_pillows_to_the_bit(photographs):
    """Also where a resize to the picture's own size shows every pixel."""
    root = photographs.root
    (root.parent / "square").mkdir(exist_ok=True)
    for i in range(8):
        photograph(i, 48, 48).save(root.parent / "square" / f"{i}.jpg", quality=85, progressive=i % 2 == 0)
    source = open_source(str(root.parent / "square"))
    assert differences(source, PLAIN).max() == 0


def test_solarisation_inverts_from_the_threshold_on(photographs):
    """A level that rounding takes across the threshold is inverted in one and not in the other: compare below it."""
    augment = dataclasses.replace(PLAIN, solarize_p=(1.0, 1.0), solarize_threshold=100)
    plain, ours = (batches(photographs, 1, "graph", augment=a)[0].views[0].int() for a in (PLAIN, augment))
    assert torch.equal(ours, torch.where(plain >= 100, 255 - plain, plain))


def test_blur_differs_at_the_border_only(photographs):
    """Beyond three standard deviations from it, by a few levels."""
    augment = dataclasses.replace(PLAIN, blur_p=(1.0, 1.0), blur_sigma=(1.0, 2.0))
    ours, theirs = (batches(photographs, 1, pipeline, augment=augment)[0].views[0] for pipeline in ("graph", "pillow"))
    inner = (slice(None), slice(7, -7), slice(7, -7))
    assert (ours[inner].int() - theirs[inner].int()).abs().max() <= 5


def test_end_to_end(photographs):
    """MoCo v3's augmentation as a whole."""
    found = differences(photographs, AugmentConfig())
    print(f"end to end: mean {found.mean():.3f}, share above 8: {(found > 8).float().mean():.5f}")
    assert found.mean() <= 0.6 and (found > 8).float().mean() <= 0.005


@both
def test_multi_crop(photographs, pipeline):
    augment = dataclasses.replace(UNBLURRED, local_views=3, local_size=24, local_blur_p=0.0)
    ours, theirs = (batches(photographs, 1, name, augment=augment)[0] for name in (pipeline, "pillow"))
    sides = [view.shape[1] for view in ours.views]
    assert sides == [48, 48, 24, 24, 24] and [view.shape for view in theirs.views] == [
        view.shape for view in ours.views
    ]
    for a, b in zip(ours.views, theirs.views):
        assert (a.int() - b.int()).abs().float().mean() <= 0.4
    assert not torch.equal(ours.views[2], ours.views[3])


@both
def test_one_view_of_an_mae(photographs, pipeline):
    augment = dataclasses.replace(PLAIN, crop_scale=(0.2, 1.0), flip_p=0.5, blur_p=(0.0,), solarize_p=(0.0,))
    (view,) = batches(photographs, 1, pipeline, num_views=1, augment=augment)[0].views
    assert view.shape == (8, 48, 48, 3) and view.dtype == torch.uint8


@both
def test_gray_pictures_in_memory(pipeline):
    source = open_source("fashion-mnist") if os.path.isdir("/usr/share/datasets/fashion-mnist") else None
    if source is None:
        pytest.skip("dataset-fashion-mnist is not installed")
    ours, theirs = (batches(source, 2, name, image_size=28) for name in (pipeline, "pillow"))
    for a, b in zip(ours, theirs):
        assert a.views[0].shape == (8, 28, 28, 1) and torch.equal(a.index, b.index)
        assert (a.views[0].int() - b.views[0].int()).abs().float().mean() < 2


@both
def test_any_number_of_threads_gives_the_same_bits(photographs, pipeline):
    expected = batches(photographs, 7, pipeline)
    assert {batch.epoch for batch in expected} == {0, 1, 2}
    for threads in (1, 2, 7):
        assert same_all(batches(photographs, 7, pipeline, workers=threads), expected)


@both
def test_starting_anywhere_is_skipping(photographs, pipeline):
    expected = batches(photographs, 7, pipeline)
    for start in range(1, 7):
        assert same_all(batches(photographs, 7 - start, pipeline, start_step=start), expected[start:])


@pytest.mark.parametrize("pipeline", ["dali", "graph", "pillow"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_what_one_sees(photographs, pipeline, world_size):
    expected = batches(photographs, 5, pipeline)
    ranks = [batches(photographs, 5, pipeline, rank=r, world_size=world_size) for r in range(world_size)]
    for step, whole in enumerate(expected):
        parts = [of_rank[step] for of_rank in ranks]
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        for view in range(2):
            assert torch.equal(torch.cat([part.views[view] for part in parts]), whole.views[view])


def test_a_batch_that_ranks_do_not_divide(photographs):
    with pytest.raises(UserError, match="a batch of 8 is not divided by 3 ranks"):
        make_loader(photographs, **SETTINGS, rank=0, world_size=3)


@both
def test_views_that_were_handed_out_are_never_written_again(photographs, pipeline, monkeypatch):
    if pipeline == "graph":
        monkeypatch.setattr(native_views, "available", lambda: False)
    with make_loader(photographs, **SETTINGS, pipeline="dali", prefetch=1) as made:
        first = next(made)
        before = [view.clone() for view in first.views]
        for _ in range(12):
            next(made)
    assert all(torch.equal(view, kept) for view, kept in zip(first.views, before))


@both
def test_bad_files_are_replaced_and_named_as_by_pillow(corrupt_folder, pipeline):
    source = open_source(str(corrupt_folder))
    ours, theirs = (batches(source, 8, name, augment=UNBLURRED) for name in (pipeline, "pillow"))
    assert any(batch.failures for batch in ours)
    for a, b in zip(ours, theirs):
        assert torch.equal(a.index, b.index) and a.failures == b.failures
        assert (a.views[0].int() - b.views[0].int()).abs().float().mean() <= 0.4


def damaged(data: bytes) -> bytes:
    """A JPEG whose header is whole and whose Huffman tables are not: DALI refuses it, and its end is there."""
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + b"\xff" * 16 + data[at + 16 :]


@both
def test_a_file_that_dali_refuses_costs_neither_the_batch_nor_the_order(photographs, tmp_path, pipeline):
    """Both pipelines name the same file, and the steps that were under way come out as if it were not there."""
    for i in range(NUM_IMAGES):
        (tmp_path / f"{i:02}.jpg").write_bytes(photographs.read(i))
    (tmp_path / "05.jpg").write_bytes(damaged(photographs.read(5)))
    source = open_source(str(tmp_path))
    assert plain_jpeg_size(source.read(5)) is not None, "DALI would not have been asked"
    ours, again, theirs = (batches(source, 7, name) for name in (pipeline, pipeline, "pillow"))
    assert same_all(ours, again)
    assert [batch.failures for batch in ours] == [batch.failures for batch in theirs]
    assert {failure.index for batch in ours for failure in batch.failures} == {5}


@pytest.mark.parametrize("cut", [2, 50, 500])
def test_a_truncated_jpeg_never_reaches_dali(photographs, cut):
    assert plain_jpeg_size(photographs.read(0)[:-cut]) is None


def test_headers_that_only_pillow_reads(photographs, make_image):
    whole = photographs.read(0)
    with Image.open(io.BytesIO(whole)) as image:
        assert plain_jpeg_size(whole) == (image.height, image.width)
    assert plain_jpeg_size(make_image(1, mode="CMYK")) is None
    for other in (make_image(1, format="PNG"), b"", b"\xff\xd8\xff\xd9", whole[:30] + b"\xff\xd9"):
        assert plain_jpeg_size(other) is None


def test_headers_of_damaged_files_are_a_size_or_nothing(photographs):
    rng, whole = np.random.default_rng(0), photographs.read(2)
    for _ in range(500):
        data = bytearray(whole)
        for at in rng.integers(0, 700, rng.integers(1, 6)):
            data[at] = rng.integers(256)
        size = plain_jpeg_size(bytes(data[: rng.integers(2, len(data))]) + b"\xff\xd9")
        assert size is None or (size.height > 0 and size.width > 0)


def test_a_bomb_is_never_decoded(tmp_path, photographs):
    """A JPEG header that claims 60,000 x 60,000 pixels."""
    whole = bytearray(photographs.read(0))
    at = next(at for at in range(len(whole)) if whole[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    whole[at + 5 : at + 9] = (60_000).to_bytes(2, "big") * 2
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(photographs.read(i))
    (tmp_path / "bomb.jpg").write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "load", None)
        inputs = StepInputsOf(open_source(str(tmp_path)), **SETTINGS)
        failure = inputs._open(8)
    assert failure.reason == "too large: above the cap of 89478485 pixels" or "too large" in failure.reason


def test_what_stops_a_step_is_raised_from_next(tmp_path, photographs):
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"not an image")
    with (
        make_loader(open_source(str(tmp_path)), **SETTINGS, pipeline="dali") as made,
        pytest.raises(UserError, match="too many images in a row"),
    ):
        next(made)


def test_a_run_says_who_makes_its_views(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(native_views, "available", lambda: True)
    assert pipelines.describe("dali", 0, cpu) == "data: DALI, 1 thread, views by the native kernel"
    assert pipelines.describe("dali", 2, gpu) == "data: DALI, 2 threads, views by DALI on the GPU"
    monkeypatch.setattr(native_views, "available", lambda: False)
    assert pipelines.describe("dali", 2, cpu) == "data: DALI, 2 threads, views by DALI on the CPU"
    monkeypatch.setattr(pipelines, "why_unavailable", lambda: "DALI is not installed: pip install x")
    assert pipelines.describe("pillow", 1, cpu) == "data: Pillow, 1 worker (DALI is not installed: pip install x)"


def test_a_missing_dali_is_one_line(monkeypatch):
    monkeypatch.setattr(pipelines, "why_unavailable", lambda: "not installed: pip install x")
    with pytest.raises(
        UserError, match=r"^--data\.pipeline dali: not installed: pip install x, or use --data\.pipeline pillow$"
    ):
        pipelines.choose_pipeline("dali")
    assert [pipelines.choose_pipeline(asked) for asked in ("auto", "pillow")] == ["pillow", "pillow"]


def test_auto_is_dali_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(pipelines, "why_unavailable", lambda: None)
    assert [pipelines.choose_pipeline(asked) for asked in ("auto", "dali", "pillow")] == ["dali", "dali", "pillow"]


def test_dali_is_given_every_parameter(photographs):
    """Nothing in the graph draws: no operator of it is one that could."""
    kinds = SETTINGS["augment"].view_kinds(2, 48)
    pipeline, _ = graph.build_views(kinds, SETTINGS["augment"], batch_size=8, threads=1, device_id=None)
    assert "random" not in pipeline.serialize().decode("latin-1").lower()
