"""Comparisons: equal seconds whatever a step costs, the same runs as alone, no slice lost to a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from misplace.engine import trainer
from misplace.engine.checkpoint import latest, load
from misplace.engine.cli import main
from misplace.engine.comparison import Plan, make_plan
from misplace.engine.comparison.heat_map import grid_of
from misplace.engine.comparison.page import _curve, _curves
from misplace.engine.comparison.plan import Variant, _check_labels
from misplace.engine.comparison.scoring import Right
from misplace.engine.comparison.summary import summarise
from misplace.engine.comparison.table import unequal
from misplace.engine.config import Config
from misplace.engine.errors import UserError
from misplace.engine.evaluation import bootstrap_means

NAMES = ("moco_v3", "moco_v3_dilemma")
SIZES = ["--model.image-size", "24", "--model.patch-size", "6"]
SCRIPT = Path(__file__).with_name("compare_runs.py")


@pytest.fixture
def tiny(monkeypatch, runs):
    """The module compare_runs.py beside this file."""
    import importlib

    return importlib.import_module("compare_runs")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load(latest(run / "checkpoints")).tensors


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def same_bits(one: Path, other: Path) -> bool:
    first, second = last_tensors(one), last_tensors(other)
    assert first.keys() == second.keys()
    return all(torch.equal(bits_of(tensor), bits_of(second[name])) for name, tensor in first.items())


def test_every_run_has_every_slice_and_the_order_rotates():
    plan = Plan(tuple(Variant(name, Config()) for name in "ABC"), seeds=1, budget=10.0, slice_seconds=4.0)
    slices = list(plan.slices())
    assert [s.variant for s in slices] == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert [s.until for s in slices] == [4, 4, 4, 8, 8, 8, 10, 10, 10]
    assert Plan(plan.variants, 1, 9.0, 3.0).rounds == 3  # a whole number of slices


def test_a_slow_recipe_loses_images_and_no_seconds(tiny, images, tmp_path, monkeypatch):
    slow, fast = 0.31, 0.1
    tiny.use(tiny.Clock(lambda config: slow if config.recipe == "moco_v3" else fast), monkeypatch.setattr)
    out = tmp_path / "out"
    assert tiny.compare_tiny(images, out, budget=15.0)
    first, second = json.loads((out / "comparison.json").read_text())["rows"][:2]
    assert [first["recipe"], second["recipe"]] == list(NAMES)
    assert abs(first["seconds"] / second["seconds"] - 1) < 0.01 and first["seconds"] == pytest.approx(15.0, rel=0.01)
    assert second["images"] / first["images"] == pytest.approx(slow / fast, rel=0.05)
    assert unequal(json.loads((out / "comparison.json").read_text())["summary"]) == ""


def test_by_turns_is_the_same_as_alone(tiny, images, tmp_path, monkeypatch, runs):
    """To the bit: what the other runs do in between changes nothing."""
    clock = tiny.Clock(lambda config: 1.0 if config.recipe == "moco_v3" else 0.5)
    tiny.use(clock, monkeypatch.setattr)
    out = tmp_path / "out"
    assert tiny.compare_tiny(images, out)
    for name in NAMES:
        alone = runs.tiny_config(name, images, tmp_path / name, steps=None, budget=f"{tiny.BUDGET}s")
        trainer.pretrain(alone)
        assert same_bits(out / "runs" / f"{name}-seed0", tmp_path / name)


def test_what_it_writes(tiny, images, tmp_path, monkeypatch):
    tiny.use(tiny.Clock(lambda config: 1.0), monkeypatch.setattr)
    out = tmp_path / "out"
    assert tiny.compare_tiny(images, out, seeds=2)
    result = json.loads((out / "comparison.json").read_text())
    assert [(r["recipe"], r["seed"]) for r in result["rows"]] == [
        (name, seed) for seed in (0, 1) for name in (*NAMES, "random", "pixels")
    ]
    assert all(0 <= r[key] <= 1 for r in result["rows"] for key in ("knn", "linear"))
    assert {"seconds", "images"} <= result["rows"][0].keys()
    found = {entry["recipe"]: entry for entry in result["summary"]}
    assert found["moco_v3_dilemma"]["knn_difference"]["seeds"] == 2 and "knn_difference" not in found["moco_v3"]
    page = (out / "report.html").read_text()
    assert all(name in page for name in NAMES) and page.count("<picture>") == 2 and "<script" not in page
    assert "At equal training time" in page
    order = [(line["seed"], line["round"], line["recipe"]) for line in lines(out / "slices.jsonl")]
    assert order[:4] == [(0, 0, NAMES[0]), (0, 0, NAMES[1]), (0, 1, NAMES[1]), (0, 1, NAMES[0])]
    metrics = lines(out / "runs" / "moco_v3-seed1" / "metrics.jsonl")
    assert sum("knn" in row for row in metrics) >= 4
    assert metrics[-1]["seconds"] == tiny.BUDGET and "knn" in metrics[-1]


def test_its_runs_can_be_evaluated_to_the_same_accuracy(tiny, images, tmp_path, monkeypatch, capsys):
    tiny.use(tiny.Clock(lambda config: 2.0), monkeypatch.setattr)
    out = tmp_path / "out"
    assert tiny.compare_tiny(images, out)
    rows = json.loads((out / "comparison.json").read_text())["rows"]
    capsys.readouterr()
    assert main(["evaluate", str(out / "runs" / "moco_v3-seed0"), "--protocol", "knn", "--knn.k", "20"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    by_encoder = {row["encoder"]: row["value"] for row in told["rows"]}
    assert by_encoder["trained"] == pytest.approx(rows[0]["knn"], abs=1e-12)
    assert by_encoder["random"] == pytest.approx(rows[2]["knn"], abs=1e-12)


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_plan_and_no_slice_lost(images, tmp_path):
    """Killed at one slice after another, run again each time, against one that was left alone."""

    def run(out: Path, kill_at: int) -> int:
        command = [sys.executable, str(SCRIPT), str(images), str(out), str(kill_at)]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, 0) == 0
    for write in (1, 3, 6, 9):  # the last one while the rows of a seed are measured
        assert run(killed, write) == -signal.SIGKILL
    assert run(killed, 0) == 0
    assert (killed / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    assert lines(killed / "slices.jsonl") == lines(whole / "slices.jsonl")
    assert lines(killed / "rows.jsonl") == lines(whole / "rows.jsonl")
    for name in NAMES:
        for seed in (0, 1):
            assert same_bits(*(out / "runs" / f"{name}-seed{seed}" for out in (killed, whole)))


def test_sigterm_saves_and_the_same_call_goes_on(tiny, images, tmp_path, monkeypatch):
    clock = tiny.Clock(lambda config: 1.0)
    tiny.use(clock, monkeypatch.setattr)
    step, seen = trainer.training_step, 0

    def terminated(*args, **options):
        nonlocal seen
        seen += 1
        if seen == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **options)

    monkeypatch.setattr(trainer, "training_step", terminated)
    out = tmp_path / "out"
    assert not tiny.compare_tiny(images, out)
    assert len(lines(out / "slices.jsonl")) == 1 and not (out / "comparison.json").exists()
    assert tiny.compare_tiny(images, out)
    assert [row["images"] for row in json.loads((out / "comparison.json").read_text())["rows"][:2]] == [96, 96]


def test_a_torn_line_is_no_slice(tiny, images, tmp_path, monkeypatch):
    tiny.use(tiny.Clock(lambda config: 2.0), monkeypatch.setattr)
    out = tmp_path / "out"
    assert tiny.compare_tiny(images, out)
    journal = out / "slices.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    assert tiny.compare_tiny(images, out)
    assert journal.read_bytes() == whole


def test_differences_are_paired_by_seed_and_by_image():
    bits = {("A", 0): [1, 0, 0, 0], ("B", 0): [1, 1, 0, 0], ("A", 1): [1, 1, 0, 0], ("B", 1): [1, 1, 1, 1]}
    rows = []
    for (name, seed), right in bits.items():
        right = Right({key: torch.tensor(right).bool() for key in ("knn", "linear")})
        rows.append({"recipe": name, "seed": seed, **right.accuracies(), "num_test": 4, "right": right.to_plain()})
    result = summarise(rows, ["A", "B"])
    found = result["summary"][1]["knn_difference"]
    assert found["mean"] == pytest.approx(0.375) and found["sd"] == pytest.approx(np.std([0.25, 0.5], ddof=1))
    per_image = torch.tensor([0.0, 0.5, 0.5, 0.5])
    assert (found["low"], found["high"]) == tuple(
        torch.quantile(bootstrap_means(per_image), q).item() for q in (0.025, 0.975)
    )
    assert "right" not in result["rows"][0] and result["summary"][0]["knn"] == pytest.approx(0.375)


def test_bits_come_back():
    right = Right({"knn": torch.rand(37, generator=torch.Generator().manual_seed(0)) < 0.5})
    assert torch.equal(Right.from_plain(right.to_plain(), 37).of["knn"], right.of["knn"])


def test_unequal_times_are_told():
    assert "3.0%" in unequal([{"seconds": 100.0}, {"seconds": 103.0}, {}])


def test_a_grid_of_two_options(images, tmp_path, capsys):
    options = ["--data", str(images), "--model", "nano", "--data.batch-size", "8", *SIZES]
    grid = ["--grid", "pretext.drop_rate=0,.5", "pretext.wrong_rate=.1,.2,.4"]
    assert main(["compare", "moco_v3_dilemma", *options, *grid, "--budget", "6s", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "moco_v3_dilemma:pretext.drop_rate=.5,pretext.wrong_rate=.4" in said and "6 runs, 36s in all" in said
    points = [(("a.x", a), ("a.y", b)) for a in "01" for b in "234"]
    plan = Plan(tuple(Variant(f"{p[0][1]}{p[1][1]}", Config(), p) for p in points), 1, 1.0, 1.0)
    rows, columns, values = grid_of(plan, [{"recipe": "03", "knn": 0.5}, {"recipe": "14", "knn": 0.25}], "knn")
    assert (rows, columns) == (["0", "1"], ["2", "3", "4"])
    assert values[0, 1] == 0.5 and values[1, 2] == 0.25 and np.isnan(values).sum() == 4


def test_the_curves_of_a_grid_are_named_and_drawn_by_its_values(tmp_path):
    points = [(("a.x", a), ("a.y", b)) for a in "01" for b in "2345"]
    plan = Plan(tuple(Variant(f"{p[0][1]}{p[1][1]}", Config(), p) for p in points), 1, 1.0, 1.0)
    folder = SimpleNamespace(run=lambda name, seed: tmp_path / name)
    for number, variant in enumerate(plan.variants):
        (tmp_path / variant.folder).mkdir()
        rows = [{"step": s, "seconds": s, "images": 8 * s, "knn": 0.1 * number} for s in (1, 2)]
        (tmp_path / variant.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [_curve(folder, plan, variant).place for variant in plan.variants]
    assert places == [(row, column) for row in range(2) for column in range(4)]
    said = _curves(folder, plan)
    assert said.count("<figure") == 2 and "0 / 3 10.0 %" in said and "1 / 5 70.0 %" in said


def test_dry_run_leaves_nothing(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    options = ["--data", str(images), "--model", "nano", "--data.batch-size", "8", *SIZES]
    assert main(["compare", *NAMES, *options, "--budget", "10m", "--seeds", "3", "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "6 runs, 1h00m in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["moco_v3"], "two recipes or more"),
        (["moco_v3", "moco_v3"], "named twice"),
        (["moco_v3", "moco_v4"], "unknown recipe 'moco_v4'"),
        (["moco_v3", "dino", "--model", "huge"], "--model huge: unknown"),
        (["moco_v3", "dino", "--budget", "soon"], "not a time above zero"),
        (["moco_v3", "dino", "--budget", "0"], "not a time above zero"),
        (["moco_v3", "dino", "--seeds", "0"], "--seeds 0: must be 1 or more"),
        (["moco_v3", "dino", "--steps", "9"], "comparison's to decide"),
        (["moco_v3", "dino", "--data.nonsense", "9"], "nonsense"),
        (["moco_v3", "dino:drop_rate"], "is no option=value"),
        (["moco_v3", "dino:data.source=elsewhere"], "give all recipes the same --data"),
        (["moco_v3", "dino:model.name=tiny"], "give all recipes the same --model"),
        (["moco_v3", "dino:model.patch_size=3"], "give all recipes the same --model.patch-size"),
        (["moco_v3", "dino", "--grid", "optim.base_lr=1,2"], "--grid varies one recipe"),
        (["moco_v3", "--grid", "optim.base_lr"], "write it as option=value,value"),
    ],
)
def test_bad_input(arguments, reason, images, tmp_path, capsys):
    options = ["--data", str(images), "--data.batch-size", "8", *SIZES, "--out", str(tmp_path / "out")]
    options += [] if "--model" in arguments else ["--model", "nano"]
    assert main(["compare", *arguments, *options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and reason in told
    assert not (tmp_path / "out").exists()


def test_bad_data(tiny, images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in images.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="no labels"):
        tiny.compare_tiny(flat, tmp_path / "out")
    with pytest.raises(UserError, match="one class"):
        _check_labels(SimpleNamespace(name="cats", class_names=("cat",)))
    with pytest.raises(UserError, match="nowhere"):
        tiny.compare_tiny(tmp_path / "nowhere", tmp_path / "out")


def test_a_budget_shorter_than_one_step(tiny, images, tmp_path, monkeypatch):
    tiny.use(tiny.Clock(lambda config: 40.0), monkeypatch.setattr)
    with pytest.raises(UserError, match="the first step of moco_v3 took 40 s"):
        tiny.compare_tiny(images, tmp_path / "out")


def test_another_plan_or_other_files_are_not_touched(tiny, images, tmp_path, monkeypatch):
    tiny.use(tiny.Clock(lambda config: 2.0), monkeypatch.setattr)
    out = tmp_path / "out"
    assert tiny.compare_tiny(images, out)
    before = (out / "comparison.json").read_bytes()
    with pytest.raises(UserError, match="holds another comparison"):
        tiny.compare_tiny(images, out, budget=15.0)
    assert (out / "comparison.json").read_bytes() == before
    assert tiny.compare_tiny(images, out, budget=15.0, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds thesis\.tex but no comparison"):
        tiny.compare_tiny(images, other)
    assert (other / "thesis.tex").read_text() == "mine"


def test_the_shared_data_is_opened_once_it_is_known_to_be_shared(tiny, images):
    first, second = tiny.variants(images)
    plan, source = make_plan([first, second], seeds=1, budget=5.0, slice_seconds=60.0)
    assert plan.slice_seconds == 5.0 and plan.rounds == 1 and len(source) == 48
