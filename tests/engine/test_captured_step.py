"""The step as a CUDA graph against the same step launched kernel by kernel; needs a GPU."""

import dataclasses

import pytest
import torch

from misplace.engine.captured_step import EAGER_STEPS, why_not_captured
from misplace.engine.data import make_loader, open_source
from misplace.engine.device_step import device_step
from misplace.engine.frameworks import FRAMEWORKS
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.state import state_tensors
from misplace.engine.step import NonFiniteError
from misplace.engine.step_queue import StepQueue
from misplace.engine.trainer import pretrain

pytestmark = pytest.mark.gpu
REPLAYS = 20
STEPS = EAGER_STEPS + REPLAYS


def config_on_gpu(runs, images, out, **options):
    config = runs.tiny_config("moco_v3_dilemma", images, out, precision="bf16", **options)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, device="cuda"))


class Run:
    """A method at its initial weights with a queue, and the batches of its steps."""

    def __init__(self, config, *, captured):
        source = open_source(config.data.source)
        impls = resolve_implementations(torch.device("cuda"), config.run.impl)
        assert not captured or why_not_captured(impls, torch.device("cuda")) is None
        self.method = build_method(config, source, impls)
        self.optimizer = build_optimizer(self.method, config, impls)
        self.queue = StepQueue(self.method, self.optimizer, config, captured=captured)
        self.batches = make_loader(
            source,
            batch_size=config.data.batch_size,
            num_views=FRAMEWORKS[type(config.framework)].num_views,
            image_size=config.model.image_size,
            augment=config.data.augment,
            seed=config.run.seed,
        )
        self.step = 0

    def launch(self):
        self.step += 1
        share = self.step / (STEPS + 9)
        return self.queue.launch(next(self.batches), self.step - 1, progress=share, next_progress=lambda: share)

    def losses(self, steps=STEPS):
        """One ahead, as the trainer reads them."""
        flights, found = [], []
        for _ in range(steps):
            flights.append(self.launch())
            found += [flight.result().loss for flight in flights[-2:-1]]
        return torch.tensor([*found, flights[-1].result().loss], dtype=torch.float64)

    def state(self):
        self.queue.synchronize()
        copies = {f"copy.{i}": low for i, low in enumerate(self.optimizer.copies.values())}
        return {
            name: t.detach().cpu().clone() for name, t in (state_tensors(self.method, self.optimizer) | copies).items()
        }


def furthest(first, second):
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def test_replays_are_the_eager_steps(runs, images, tmp_path):
    """To the bit where two eager runs agree to the bit; else as near as twice their distance."""
    config = config_on_gpu(runs, images, tmp_path)
    eager, again, captured = Run(config, captured=False), Run(config, captured=False), Run(config, captured=True)
    expected, repeated, actual = eager.losses(), again.losses(), captured.losses()
    assert captured.queue._run._graph is not None and actual.isfinite().all()
    assert (actual - expected).abs().max() <= 2 * (repeated - expected).abs().max()
    assert furthest(captured.state(), eager.state()) <= 2 * furthest(again.state(), eager.state())
    assert captured.optimizer.steps == STEPS


def test_steady_state_allocates_nothing(runs, images, tmp_path):
    run = Run(config_on_gpu(runs, images, tmp_path), captured=True)
    run.losses(EAGER_STEPS + 3)
    before = torch.cuda.memory_stats()
    run.losses(REPLAYS)
    after = torch.cuda.memory_stats()
    for name in ("segment.all.allocated", "reserved_bytes.all.current", "allocated_bytes.all.current"):
        assert after[name] == before[name], name


def test_no_step_waits_for_the_device(runs, images, tmp_path):
    run = Run(config_on_gpu(runs, images, tmp_path), captured=False)
    run.losses(2)
    arguments = run.method, run.optimizer, run.queue._input.fixed, run.queue._found_inf
    torch.cuda.set_sync_debug_mode("error")
    try:
        device_step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_nan_in_a_replay_is_found_and_nothing_written(runs, images, tmp_path):
    run = Run(config_on_gpu(runs, images, tmp_path), captured=True)
    run.losses(EAGER_STEPS + 2)
    weight = run.method.pretext.head.weight.data
    kept = weight[0, 0].item()
    weight[0, 0] = float("nan")
    before = run.state()
    bad = run.launch()
    run.queue.synchronize()
    weight[0, 0] = kept  # the next step is finite by itself
    following = run.launch()
    with pytest.raises(NonFiniteError, match="loss is nan"):
        bad.result()
    following.result()
    after = run.state()
    after["method.pretext.head.weight"][0, 0] = float("nan")
    written = [
        name
        for name in before
        if "running_" not in name and "num_batches" not in name and name != "optimizer.steps"
        and not torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0))
    ]  # fmt: skip
    assert written == []


@pytest.mark.parametrize("captured", [True, False])
def test_a_run_ends_resumes_and_says_what_it_cannot_capture(runs, images, tmp_path, captured, capsys):
    options = {"steps": 9, "log_every": 2, "checkpoint_steps": 4, "impl": "" if captured else "adamw_ema=torch"}
    pretrain(config_on_gpu(runs, images, tmp_path / "run", **options))
    pretrain(config_on_gpu(runs, images, tmp_path / "run", **options, resume=True))
    assert ("no CUDA graph: adamw_ema=torch reads" in capsys.readouterr().out) is not captured
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5
