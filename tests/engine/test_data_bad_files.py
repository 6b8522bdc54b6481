"""Files that cannot be used: each named with its reason, replaced, counted, not fatal below the limit."""

import io
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.engine.data import (
    AugmentConfig,
    Failure,
    PillowPipeline,
    Quarantine,
    load_eval,
    open_source,
    verify,
)
from misplace.engine.data.decode import FORMATS, DecodeError, decode, open_image
from misplace.engine.data.replacement import ATTEMPTS, replacements
from misplace.engine.errors import UserError


def pipeline(folder, batch_size=8) -> PillowPipeline:
    augment = AugmentConfig()
    return PillowPipeline(
        open_source(str(folder)), batch_size=batch_size, num_views=2, image_size=16, augment=augment, seed=3
    )


def test_each_kind_of_bad_file_has_its_reason(bad_files):
    for name, (data, reason) in bad_files.items():
        with pytest.raises(DecodeError) as error:
            decode(open_image(data), 3)
        assert str(error.value).startswith(reason), name


def test_a_bomb_is_refused_before_it_is_decoded(bad_files, monkeypatch):
    def explode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", explode)
    for name in ("huge.png", "large.png"):
        with pytest.raises(DecodeError, match="above the cap of 89478485"):
            open_image(bad_files[name][0])


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_bytes_give_a_picture_or_a_reason(format, make_image):
    """600 files with bytes changed or cut off: nothing but DecodeError ever comes out."""
    rng, whole, reasons = random.Random(format), make_image(1, format=format), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5, 20))):
            data[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
        if rng.random() < 0.4:
            data = data[: rng.randrange(len(data))]
        try:
            assert decode(open_image(bytes(data)), 3).mode == "RGB"
        except DecodeError as error:
            assert "\n" not in str(error)
            reasons += 1
    assert reasons > 20


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_8_bits(mode):
    ramp = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(12, 20))
    image = ramp.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": b"\1\2"} if mode == "P" else {}))
    for channels, expected in ((1, "L"), (3, "RGB")):
        decoded = decode(open_image(buffer.getvalue()), channels)
        assert decoded.mode == expected and decoded.size == (20, 12)
        if mode != "1":
            assert np.array_equal(np.asarray(decoded.convert("L")), np.asarray(ramp))


def test_cmyk_jpeg(make_image):
    decoded = decode(open_image(make_image(1, mode="CMYK")), 3)
    assert decoded.mode == "RGB" and decoded.size == (40, 32)


def test_verify_names_every_bad_file(corrupt_folder, bad_files):
    calls = []
    for workers in (1, 4):
        result = verify(str(corrupt_folder), workers=workers, progress=lambda *call: calls.append(call))
        assert result.num_images == 24 + len(bad_files)
        found = {failure.path.rpartition("/")[2]: failure.reason for failure in result.failures}
        assert found.keys() == bad_files.keys()
        assert all(found[name].startswith(reason) for name, (_, reason) in bad_files.items())
        assert result.kinds["too large"] == 2 and sum(result.kinds.values()) == len(bad_files)
        assert calls[-1] == (32, 32, 8)


def test_verify_looks_at_every_split(photo_folder, bad_files):
    root = photo_folder.parent / "root"
    (root / "val" / "cat").mkdir(parents=True)
    photo_folder.rename(root / "train")
    (root / "val" / "cat" / "x.jpg").write_bytes(bad_files["text.jpg"][0])
    result = verify(str(root))
    assert result.num_images == 25 and [f.path for f in result.failures] == [str(root / "val/cat/x.jpg")]


def test_bad_samples_are_replaced_and_said(corrupt_folder, bad_files):
    source = open_source(str(corrupt_folder))
    seen = {}
    for step in range(8):
        batch = pipeline(corrupt_folder)[step]
        ordered = {int(i) for i in batch.index if int(i) < len(bad_files)}  # class "bad" comes first
        failed = {failure.index for failure in batch.failures}
        assert ordered <= failed
        for failure in batch.failures:
            assert failure.path == source.path_of(failure.index)
            seen[failure.path.rpartition("/")[2]] = failure.reason
    assert seen.keys() == bad_files.keys()
    assert all(seen[name].startswith(reason) for name, (_, reason) in bad_files.items())


def test_a_replaced_row_is_the_replacement_under_the_ordered_samples_draw(corrupt_folder, bad_files):
    """Good rows are what they are without bad files; a bad row is a pure function of its own index."""
    pipe = pipeline(corrupt_folder)
    step = next(s for s in range(4) if pipe[s].failures)
    batch, again = pipe[step], pipe[step]
    assert all(torch.equal(a, b) for a, b in zip(batch.views, again.views))
    assert batch.failures == again.failures

    row = next(r for r, i in enumerate(batch.index.tolist()) if i < len(bad_files))
    sample = int(batch.index[row])
    other = next(i for i in replacements(sample, 0, 32, seed=3) if i >= len(bad_files))
    source = open_source(str(corrupt_folder))
    bad = corrupt_folder / "bad" / source.path_of(sample).rpartition("/")[2]
    bad.write_bytes(source.read(other))
    mended = pipe[step]
    assert all(torch.equal(a[row], b[row]) for a, b in zip(batch.views, mended.views))


def test_replacements_are_a_pure_function():
    first = replacements(5, 1, 10**12, seed=0)
    assert len(first) == ATTEMPTS == len(set(first)) and max(first) < 10**12
    assert first == replacements(5, 1, 10**12, seed=0)
    for other in ((6, 1, 10**12, 0), (5, 2, 10**12, 0), (5, 1, 10**12, 1)):
        assert replacements(*other) != first


def test_vanished_and_unreadable_files(photo_folder, monkeypatch):
    pipe = pipeline(photo_folder, batch_size=24)
    (photo_folder / "cat" / "03.jpg").unlink()
    (photo_folder / "cat" / "04.jpg").unlink()
    (photo_folder / "cat" / "04.jpg").mkdir()
    reasons = {failure.path[-6:]: failure.reason for failure in pipe[0].failures}
    assert reasons == {"03.jpg": "the file is gone", "04.jpg": "cannot be read: Is a directory"}

    def refuse(index):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pipe.source, "read", refuse)
    with pytest.raises(UserError, match=r"too many images in a row cannot be read.*permission denied"):
        pipe[0]


def test_evaluation_leaves_bad_files_out_and_names_them(corrupt_folder, bad_files, caplog):
    source = open_source(str(corrupt_folder))
    images, kept = load_eval(source, torch.arange(len(source)), 32)
    assert kept.tolist() == list(range(len(bad_files), 32)) and images.shape == (24, 32, 32, 3)
    assert all(name in caplog.text for name in bad_files)
    assert len(load_eval(source, torch.tensor([0]), 32)[0]) == 0


def failure(number: int, reason: str = "the file is empty") -> Failure:
    return Failure(number, f"/data/{number}.jpg", reason)


def test_quarantine_names_each_file_once_and_stops_above_the_limit(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(file, num_samples=200, max_share=0.01)
    quarantine.add([])
    assert not file.exists()
    quarantine.add([failure(1), failure(1), failure(2)])
    quarantine.add([failure(1)])
    assert len(quarantine) == 2
    with pytest.raises(UserError) as error:
        quarantine.add([failure(3, "truncated")])
    for part in ("3 of 200", "0.01", "/data/3.jpg (truncated)", str(file), "--data.max-bad-share"):
        assert part in str(error.value)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["index"] for line in lines] == [1, 2, 3]
    assert lines[2] == {"index": 3, "path": "/data/3.jpg", "reason": "truncated"}


def test_quarantine_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    Quarantine(file, 1000, 0.002).add([failure(1), failure(2)])
    file.write_bytes(file.read_bytes()[:-9])
    resumed = Quarantine(file, 1000, 0.002)
    assert len(resumed) == 1
    resumed.add([failure(1), failure(2)])
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [1, 2]
    with pytest.raises(UserError):
        Quarantine(file, 1000, 0.002).add([failure(3)])


def test_a_file_that_is_no_quarantine(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    for text in ("hello\n", "[]\n", "{}\n"):
        file.write_text(text)
        with pytest.raises(UserError, match="not a list of quarantined files"):
            Quarantine(file, 10)
