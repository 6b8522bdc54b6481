"""A run whose results are read a step late: the same run, and a bad step is found with all that it saw."""

import contextlib
import json

import pytest
import torch

from misplace.engine import captured_step, step_queue
from misplace.engine.capture import read_capture
from misplace.engine.captured_step import EAGER_STEPS, CapturedStep, why_not_captured
from misplace.engine.checkpoint import latest, load
from misplace.engine.data import make_loader, open_source
from misplace.engine.errors import UserError
from misplace.engine.meter import Meter
from misplace.engine.non_finite import replay
from misplace.engine.step_queue import StepQueue
from misplace.engine.trainer import Trainer, pretrain
from misplace.kernels import Impl

TIMED = {"seconds", "images_per_s", "data_wait"}


@pytest.fixture
def late(monkeypatch):
    """Runs on the CPU go through the queue, as on a GPU."""

    def queue(trainer):
        return StepQueue(trainer.method, trainer.optimizer, trainer.config, captured=False)

    monkeypatch.setattr(Trainer, "_step_queue", queue)


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMED} for row in found]


def run(runs, images, out, **options):
    options = {"steps": 7, "log_every": 2, "checkpoint_steps": 3, "keep": 9, "knn_every": 0.4} | options
    return pretrain(runs.tiny_config("moco_v3_dilemma", images, out, **options))


def test_it_is_the_same_run(runs, images, tmp_path, request, monkeypatch):
    monkeypatch.setattr(Trainer, "online_task", type("Task", (), {"top1": lambda self, features: 0.5})())
    at_once = run(runs, images, tmp_path / "at_once")
    request.getfixturevalue("late")
    late = run(runs, images, tmp_path / "late")
    assert rows(late) == rows(at_once)
    assert [row["step"] for row in rows(late)] == [2, 3, 4, 6, 7]  # every second, the k-NN's and the last
    assert [row["step"] for row in rows(late) if "knn" in row] == [3, 6]
    for step in (2, 5, 7):
        first, second = (load(folder / "checkpoints" / f"step-{step:08d}") for folder in (late, at_once))
        assert first.step == second.step == step
        assert [name for name in first.tensors if not torch.equal(first.tensors[name], second.tensors[name])] == []


def test_a_stopped_run_goes_on_as_if_it_had_not(runs, images, tmp_path, late, monkeypatch):
    whole = run(runs, images, tmp_path / "whole", knn_every=0.0)
    real, launched = StepQueue.launch, []

    def stopping(self, *arguments, **options):
        launched.append(1)
        if len(launched) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(StepQueue, "launch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(runs, images, tmp_path / "parts", knn_every=0.0)
    parts = run(runs, images, tmp_path / "parts", knn_every=0.0, resume=True)
    first, second = (load(latest(folder / "checkpoints")) for folder in (whole, parts))
    assert first.step == second.step == 7 and rows(whole) == rows(parts)
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def test_a_bad_step_is_captured_as_it_was_though_another_was_launched(runs, images, tmp_path, late, monkeypatch):
    clean = run(runs, images, tmp_path / "clean", steps=2, knn_every=0.0)
    real, calls = step_queue.device_step, []

    def poisoned(method, *arguments):
        calls.append(1)
        weight = method.pretext.head.weight.data
        kept = weight.clone()
        if len(calls) == 3:
            weight[0, 0] = float("nan")
        output = real(method, *arguments)
        weight.copy_(kept if len(calls) == 3 else weight)  # so that the step after it would be finite
        return output

    monkeypatch.setattr(step_queue, "device_step", poisoned)
    with pytest.raises(UserError, match=r"step 2: loss is nan .*nothing was updated; replay it with"):
        run(runs, images, tmp_path / "bad", steps=2000, knn_every=0.0)
    assert len(calls) == 4
    (path,) = (tmp_path / "bad" / "capture").glob("capture-*")
    capture, saved = read_capture(path), load(latest(clean / "checkpoints"))
    assert capture.state["step"] == 2 and capture.tensors["optimizer.steps"] == 2
    same_length = {"optimizer.steps", "method.pretext.head.weight", "method.encoder.blocks.0.mlp.fc1.weight"}
    assert same_length <= capture.tensors.keys() == saved.tensors.keys()
    assert [row["step"] for row in rows(tmp_path / "bad")] == [2]
    batch = third_batch(runs.tiny_config("moco_v3_dilemma", images, tmp_path / "bad"))
    assert torch.equal(capture.index, batch.index) and capture.epoch == batch.epoch
    assert all(map(torch.equal, capture.batch_views, batch.views))


def third_batch(config):
    loader = make_loader(
        open_source(config.data.source),
        batch_size=config.data.batch_size,
        num_views=2,
        image_size=config.model.image_size,
        augment=config.data.augment,
        seed=config.run.seed,
        start_step=2,
    )
    return next(loader)


def test_a_capture_of_the_queue_replays(runs, images, tmp_path, late, monkeypatch):
    real, calls = step_queue.device_step, []

    def poisoned(method, *arguments):
        calls.append(1)
        if len(calls) == 3:
            method.pretext.head.weight.data[0, 0] = float("nan")
        return real(method, *arguments)

    monkeypatch.setattr(step_queue, "device_step", poisoned)
    with pytest.raises(UserError, match="step 2: loss is nan"):
        run(runs, images, tmp_path / "bad", knn_every=0.0)
    (path,) = (tmp_path / "bad" / "capture").glob("capture-*")
    values = replay(path)
    assert values["bce"] != values["bce"] and values["contrastive"] == values["contrastive"]


@pytest.mark.parametrize(
    "impls, device, words",
    [
        ({"adamw_ema": Impl.NATIVE, "patch_embed": Impl.TRITON}, "cpu", "needs a CUDA device"),
        ({"adamw_ema": Impl.TORCH, "patch_embed": Impl.TRITON}, "cuda:0", "adamw_ema=torch reads"),
        ({"adamw_ema": Impl.TRITON, "patch_embed": Impl.REFERENCE}, "cuda:0", "patch_embed=reference reads"),
        ({"adamw_ema": Impl.TRITON, "patch_embed": Impl.NATIVE}, "cuda:0", None),
    ],
)
def test_what_cannot_be_captured_is_said(impls, device, words):
    reason = why_not_captured(impls, torch.device(device.removesuffix(":0")))
    assert reason is None if words is None else words in reason


def test_waiting_that_work_hides_is_not_counted():
    now = [0.0]
    meter = Meter(8, now=lambda: now[0])
    for hidden in (False, True):
        with meter.waiting(hidden=lambda hidden=hidden: hidden):
            now[0] += 1.0
    now[0] += 2.0
    assert meter.read()["data_wait"] == 0.25


class FakeGraphs:
    """torch.cuda's part of a capture, which only notes what it is asked for."""

    def __init__(self, monkeypatch):
        self.events, graphs = [], self

        class CUDAGraph:
            def replay(self):
                graphs.events.append("replay")

        @contextlib.contextmanager
        def graph(_, **options):
            assert options["stream"] == "the stream of the steps"
            graphs.events.append("begin")
            yield
            graphs.events.append("end")

        monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the stream of the steps")


def test_a_step_is_captured_once_after_eager_ones_and_then_replayed(monkeypatch):
    graphs = FakeGraphs(monkeypatch)
    monkeypatch.setattr(captured_step, "device_step", lambda *given: graphs.events.append(given) or len(given))
    arguments = ("method", "optimizer", "input", "found_inf")
    step = CapturedStep(*arguments)
    assert [step() for _ in range(EAGER_STEPS + 3)] == [4] * (EAGER_STEPS + 3)
    captured = ["begin", arguments, "end", "replay", "replay", "replay"]
    assert graphs.events == [arguments] * EAGER_STEPS + captured


def test_a_capture_that_fails_says_how_to_go_on(monkeypatch):
    FakeGraphs(monkeypatch)
    step = CapturedStep("method", "optimizer", "input", "found_inf")
    step._eager_steps = EAGER_STEPS

    def reading(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(captured_step, "device_step", reading)
    with pytest.raises(UserError, match=r"cannot be captured \(CUDA error: .* capturing\); .*--run.no-cuda-graph"):
        step()
