"""`misplace profile`: a tiny recipe through all of it, and its mistakes."""

import contextlib
import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

from misplace import kernels
from misplace.bench import roofline, timing
from misplace.bench.profile import command, replay, table
from misplace.bench.profile.record import Recorder
from misplace.bench.profile.rows import Row, by_op
from misplace.bench.profile.session import Session
from misplace.engine.errors import UserError

CPU = torch.device("cpu")
OWN = {"nt_xent": "simclr", "prototype_ce": "dino", "restore": "mae", "patch_mse": "mae"}  # op -> framework
IN_EVERY_STEP = set(kernels.OPS) - {"info_nce", *OWN}
TINY = ["moco_v3_dilemma", "--model", "nano", "--model.image-size", "24", "--model.patch-size", "6", "--device", "cpu"]
TINY += ["--data.batch-size", "4", "--data.workers", "0"]
TINY += ["--framework.hidden-width", "16", "--framework.output-width", "8"]
TINY += ["--steps", "2", "--rounds", "1", "--profile.warm-up", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen noisy images in two classes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(16):
        (root / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(root / str(i % 2) / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def small_roofline():
    """The device's rates, measured on little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(roofline.TRAFFIC_BYTES, "cpu", 1 << 16)
        patch.setitem(roofline.MATMUL_SIZE, "cpu", 64)
        roofline.traffic_rate.cache_clear()
        roofline.matmul_rate.cache_clear()
        yield
    roofline.traffic_rate.cache_clear()
    roofline.matmul_rate.cache_clear()


@pytest.fixture(scope="module")
def folder(images, small_roofline, tmp_path_factory):
    """The files of one profile."""
    out = tmp_path_factory.mktemp("profiles") / "first"
    assert command.main([*TINY, "--data", str(images), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def profile(folder) -> dict:
    return json.loads((folder / "profile.json").read_text())


@pytest.mark.parametrize("framework", ["simclr", "dino", "mae"])
def test_the_ops_of_the_other_frameworks_have_theirs(images, small_roofline, tmp_path, framework):
    shapes = TINY[1 : TINY.index("--framework.hidden-width")] + TINY[TINY.index("--steps") :]
    options = ["--data.augment.local-views", "2"] if framework == "dino" else []
    arguments = [f"{framework}_dilemma", *shapes, *options, "--data", str(images), "--out", str(tmp_path / "profile")]
    assert command.main(arguments) == 0
    rows = json.loads((tmp_path / "profile" / "profile.json").read_text())["rows"]
    own = {op for op, owner in OWN.items() if owner == framework}
    assert {row["op"] for row in rows} == IN_EVERY_STEP | own
    for row in rows:
        assert row["ms"] > 0 and row["reference_ms"] > 0 and row["bytes_moved"] > 0, row


def test_every_op_of_the_step_has_its_rows(profile):
    rows = profile["rows"]
    assert {row["op"] for row in rows} == IN_EVERY_STEP | {"info_nce"}
    directions = {(row["op"], row["direction"]) for row in rows}
    with_backward = {op for op, direction in directions if direction == "backward"}
    assert with_backward == (IN_EVERY_STEP | {"info_nce"}) - {"token_plan", "adamw_ema"}
    for row in rows:
        assert row["calls"] >= 1 and row["ms"] > 0 and row["replayed_ms"] > 0, row
        assert row["reference_ms"] > 0 and row["ratio"] > 0, row
        assert row["bytes_moved"] > 0 and row["floor_ms"] > 0 and row["gb_s"] > 0, row
    linear = [row for row in rows if row["op"] == "linear" and row["direction"] == "forward"]
    assert all(row["operations"] > 0 and row["tflop_s"] > 0 for row in linear)


def test_shares_are_parts_of_the_recorded_step(profile):
    step = profile["step"]
    assert 0 < sum(row["share"] for row in profile["rows"]) < 1
    assert step["images_per_s"] == pytest.approx(4 / step["ms"] * 1e3)
    assert step["operations"] == sum(row["operations"] for row in profile["rows"])


def test_files_are_readable_and_self_contained(folder):
    text = (folder / "profile.txt").read_text()
    assert "between the ops" in text and "By shape:" in text and "adamw_ema" in text
    picture = (folder / "profile.svg").read_text()
    assert picture.startswith("<?xml") and "<image" not in picture and "<text" not in picture
    with gzip.open(folder / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {f"misplace::{op}" for op in IN_EVERY_STEP | {"info_nce"}} <= names
    assert "aten::" in (folder / "operators.txt").read_text()


def test_a_profile_is_not_overwritten_unasked(folder, images):
    with pytest.raises(UserError, match="holds a profile"):
        command.main([*TINY, "--data", str(images), "--out", str(folder)])


def test_recorded_steps_train_as_others_do(images):
    """The recorder changes no bit of three steps, forward, backward and update."""
    parameters = []
    for recorded in (False, True):
        config = command.configure([*TINY, "--data", str(images)])
        recorder = Recorder(CPU)
        with timing.pinned_threads(1):
            session = Session(config)
            for _ in range(3):
                with recorder.step() if recorded else contextlib.nullcontext():
                    session.step()
        parameters.append([p.detach().clone() for p in session.method.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe, one of: moco_v3"),
        (["nonsense"], "unknown recipe 'nonsense'"),
        ([*TINY, "--against", "magic"], "--against magic: one of reference"),
        ([*TINY, "--rounds", "0"], "--rounds 0: must be 1 or more"),
        ([*TINY, "--threads", "0"], "--threads 0: must be 1 or more"),
        ([*TINY, "--steps", "0"], "--steps 0"),
        ([*TINY, "--steps", "None"], "runs a number of --steps"),
        ([*TINY, "--budget", "1m"], "--steps and --budget both set"),
        ([*TINY, "--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(UserError) as raised:
        command.main(arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_help_names_the_recipes(capsys):
    assert command.main(["--help"]) == 0
    assert "moco_v3_dilemma" in capsys.readouterr().out


ROW = Row(
    op="gelu", impl="torch", direction="forward", shape="[2]", dtype="float32", calls=3, ms=6.0, share=0.1,
    replayed_ms=5.0, reference_ms=20.0, ratio=3.0, bytes_moved=6_000_000, operations=12_000_000, floor_ms=1.5,
)  # fmt: skip


def test_rates_are_those_in_the_step():
    assert (ROW.gb_s, ROW.tflop_s, ROW.floor_share) == pytest.approx((1.0, 0.002, 0.25))


def test_shapes_of_an_op_are_summed():
    slow = dataclasses.replace(ROW, shape="[9]", ms=4.0, replayed_ms=5.0, reference_ms=10.0, dtype="bfloat16")
    other = dataclasses.replace(ROW, op="linear", ms=50.0)
    first, second = by_op([ROW, slow, other])
    assert first == other
    assert (second.calls, second.ms, second.share, second.ratio) == (6, 10.0, 0.2, 3.0)
    assert (second.shape, second.dtype) == ("2 shapes", "bfloat16 float32")


def replayed(call, against: str) -> replay.Replayed:
    """The forward of the one op in `call`, held against another implementation."""
    recorder = Recorder(CPU)
    with recorder.step():
        call()
    ((site, example),) = recorder.examples.items()
    return replay.replay(site, example, against, CPU, rounds=1)["forward"]


def test_an_op_that_the_other_side_lacks_has_no_ratio():
    names = dict(num_patches=4, drop_rate=0.5, wrong_rate=0.2, seed=0, epoch=0, view=0)
    one = replayed(lambda: kernels.token_plan(torch.arange(3), **names), "torch")
    assert one.ms > 0 and (one.against_ms, one.ratio) == (None, None)
    assert "has no impl=torch on cpu" in one.why_not


def test_a_reference_that_does_not_fit_in_memory_has_no_ratio(monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 80 GB\nand more")

    monkeypatch.setattr(timing, "compare", out_of_memory)
    one = replayed(lambda: kernels.gelu(torch.randn(3), impl="torch"), "reference")
    assert one.ms > 0 and (one.against_ms, one.ratio, one.why_not) == (None, None, "tried to allocate 80 GB")
    row = dataclasses.replace(ROW, reference_ms=None, ratio=None, why_not=one.why_not)
    lines = table.text(PROFILE, [row], "reference").splitlines()
    assert lines[-1] == "gelu: no reference: tried to allocate 80 GB"


PROFILE = {
    "environment": {"device": "a CPU", "versions": "torch=2", "commit": "abc"},
    "recipe": "moco_v3", "model": "nano", "batch_size": 4, "precision": "bf16", "threads": 1,
    "step": {
        "ms": 50.0, "p20": 49.0, "p80": 51.0, "images_per_s": 80.0, "peak_memory": 3 * 10**9, "tflop_s": 0.1,
        "matmul_share": 0.25, "recorded_ms": 60.0,
    },
}  # fmt: skip


def test_table_tells_the_step_and_what_is_left_of_it():
    text = table.text(PROFILE, [ROW], "reference")
    assert "step 50 ms (49-51), 80 images/s, 3.00 GB at its peak" in text
    assert "25.0% of this device's square matrix product" in text
    (between,) = [line.split() for line in text.splitlines() if line.startswith("between the ops")]
    assert between[-2:] == ["54", "90.0%"]
