"""A pretraining run: from a configuration to a trained, evaluated, reported encoder in a run folder."""

import functools
from collections.abc import Iterator
from pathlib import Path

import torch

from . import finish
from .auroc import auroc
from .checkpoint import latest, load, save
from .clock import TrainingClock
from .collapse import ChanceDetector, CollapseDetector
from .config import Config, first_difference, to_plain
from .data import Batch, PillowLoader, Quarantine, Source, make_loader, open_source
from .errors import UserError
from .evaluation import KnnTask, patch_mean
from .implementations import resolve_implementations
from .meter import Meter
from .method import build_method, build_optimizer, encoder_arguments
from .metrics_log import MetricsLog
from .non_finite import stop_with_capture
from .pretexts import DilemmaConfig
from .progress import ProgressDisplay, print_implementations
from .resolve import horizon, resolve
from .run_folder import RunFolder
from .signals import StopSignals
from .state import load_state, state_tensors
from .step import NonFiniteError, StepResult, training_step

# What may differ between a run and its resumption without changing a single bit of its result.
FREE_TO_CHANGE = ("out", "resume", "overwrite", "log_every", "keep", "knn_every", "report")


def pretrain(config: Config) -> Path:
    """Runs `config` to its end, or to SIGTERM; returns the run folder. Shown as `misplace pretrain`."""
    source = open_source(config.data.source)
    config = resolve(config.validate(), source)
    with RunFolder.create(config.run.out, overwrite=config.run.overwrite, resume=config.run.resume) as folder:
        trainer = Trainer(config, source, folder)
        with StopSignals() as signals:
            trainer.fit(signals)
        if trainer.finished:
            finish.evaluate_and_report(trainer)
        else:
            print(f"stopped at step {trainer.step}, saved; go on with --resume --out {folder.path}", flush=True)
    return folder.path


class Trainer:
    """The state of a run and its loop."""

    def __init__(self, config: Config, source: Source, folder: RunFolder):
        self.config, self.source, self.folder = config, source, folder
        self.horizon = horizon(config, source)
        self.impls = resolve_implementations(torch.device(config.run.device), config.run.impl)
        self.method = build_method(config, source, self.impls)
        self.optimizer = build_optimizer(self.method, config, self.impls)
        self.step, self.clock = 0, TrainingClock()
        self.model = encoder_arguments(config, source)
        self._start_or_resume()
        print_implementations({op: impl.value for op, impl in self.impls.items()})

    @property
    def progress(self) -> float:
        return self.horizon.progress(self.step, self.clock.elapsed)

    @property
    def finished(self) -> bool:
        return self.horizon.done(self.step, self.clock.elapsed)

    def fit(self, signals: StopSignals) -> None:
        """Steps until the horizon or a signal; saves at the end of either."""
        self.meter = Meter(self.config.data.batch_size)
        self._watch = self._detectors()
        self._knn_mark = int(self.progress / self.config.run.knn_every) if self.config.run.knn_every else 0
        with (
            self._loader() as loader,  # first: it forks its workers, and TensorBoard starts threads
            self._open_log() as self.log,
            ProgressDisplay(self.horizon) as self.display,
        ):
            batches = self._on_device(loader)
            self.clock.start()
            while not (self.finished or signals.stop_requested):
                self._one_step(batches)
                self._save_if_due()
            self.clock.pause()
            if self._saved_at[0] != self.step:
                self.save()

    def save(self) -> None:
        """A checkpoint of the state between two steps."""
        with self.clock.paused():
            state = {
                "seconds": self.clock.elapsed,
                "config": to_plain(self.config),
                "model": self.model,
            }
            tensors = state_tensors(self.method, self.optimizer)
            save(self.folder.checkpoints, self.step, tensors, state, keep=self.config.run.keep)
        self._saved_at = (self.step, self.clock.elapsed)

    def _start_or_resume(self) -> None:
        plain = to_plain(self.config)
        path = latest(self.folder.checkpoints) if self.folder.resumed else None
        if self.folder.resumed:
            _refuse_other_config(self.folder.read_config(), plain, self.folder.path)
        if path is not None:
            checkpoint = load(path)
            _refuse_other_config(checkpoint.state["config"], plain, path)
            load_state(checkpoint, self.method, self.optimizer)
            self.step, self.clock = checkpoint.step, TrainingClock(checkpoint.state["seconds"])
        self.folder.write_config(plain)
        impls = {op: impl.value for op, impl in self.impls.items()}
        self.folder.write_environment(device=self.config.run.device, implementations=impls)
        self._saved_at = (self.step if path is not None else -1, self.clock.elapsed)

    def _open_log(self) -> MetricsLog:
        resume_step = self.step if self.folder.resumed else None
        return MetricsLog(self.folder.metrics, tensorboard=self.folder.tensorboard, resume_step=resume_step)

    def _loader(self) -> PillowLoader:
        data = self.config.data
        return make_loader(
            self.source,
            batch_size=data.batch_size,
            num_views=self.method.framework.num_views,
            image_size=self.config.model.image_size,
            augment=data.augment,
            seed=self.config.run.seed,
            start_step=self.step,
            workers=data.workers,
            prefetch=data.prefetch,
        )

    def _on_device(self, loader: PillowLoader) -> Iterator[Batch]:
        quarantine = Quarantine(self.folder.quarantine, len(self.source), self.config.data.max_bad_share)
        for batch in loader:
            quarantine.add(batch.failures)
            yield batch.to(torch.device(self.config.run.device))

    def _one_step(self, batches: Iterator[Batch]) -> None:
        with self.meter.waiting():
            batch = next(batches)
        start = self.progress
        try:
            result = training_step(
                self.method,
                self.optimizer,
                batch,
                self.config,
                progress=start,
                next_progress=lambda: self.horizon.progress(self.step + 1, self.clock.elapsed),
            )
        except NonFiniteError as error:
            stop_with_capture(self, batch, error)
        self.step += 1
        self.meter.count_step()
        for watch in self._watch:
            if notice := watch(result):
                self.display.message(notice)
        accuracy = self._online_knn()
        if self.step % self.config.run.log_every == 0 or self.finished or accuracy is not None:
            self._write_metrics(batch, result, accuracy)

    def _write_metrics(self, batch: Batch, result: StepResult, accuracy: float | None) -> None:
        detection = result.detection
        row = {
            "step": self.step,
            "epoch": batch.epoch,
            "images": self.step * self.config.data.batch_size,
            "seconds": self.clock.elapsed,
            "loss": result.loss,
            **result.terms,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            **self.meter.read(),
        }
        if detection is not None:
            row["auroc"] = auroc(detection.logits, detection.wrong)
        if accuracy is not None:
            row["knn"] = accuracy
        self.log.write(row)
        self.display.update(row)

    def _save_if_due(self) -> None:
        run = self.config.run
        step, seconds = self._saved_at
        due = (
            self.step - step >= run.checkpoint_steps
            if run.checkpoint_steps
            else self.clock.elapsed - seconds >= 60 * run.checkpoint_minutes
        )
        if due and not self.finished:
            self.save()

    def _online_knn(self) -> float | None:
        """k-NN of the encoder each time another share run.knn_every of the run is over; outside training time."""
        every = self.config.run.knn_every
        if not every or not self.source.class_names or self.finished:
            return None
        mark = int(self.progress / every)
        due, self._knn_mark = mark > self._knn_mark, mark
        if not due:
            return None
        with self.clock.paused(), self.meter.excluded():
            return self.online_task.top1(patch_mean(self.method.encoder))

    @functools.cached_property
    def online_task(self) -> KnnTask:
        """A small fixed part of the data, for k-NN on the way."""
        return KnnTask(self.config.data.source, self.config.model.image_size, num_train=2000, num_test=1000)

    def _detectors(self) -> list:
        """Functions of a step's result that say, once, what has gone wrong with the learning."""
        signature = self.method.framework.collapse_loss(self.config.data.batch_size)
        collapse = CollapseDetector("the framework loss", signature, grace=100)
        watches = [lambda result: collapse.update(self.step, result.framework_loss)]
        if isinstance(self.config.pretext, DilemmaConfig):
            chance = ChanceDetector(self.config.pretext.wrong_rate, grace=200)
            watches.append(lambda r: chance.update(self.step, r.terms["bce"]) if "bce" in r.terms else None)
        return watches


def _refuse_other_config(before: dict, now: dict, where: Path) -> None:
    """A resumed run is the same run: anything that would change its result is a UserError."""
    before, now = (
        {**plain, "run": {k: v for k, v in plain["run"].items() if k not in FREE_TO_CHANGE}} for plain in (before, now)
    )
    if difference := first_difference(before, now):
        raise UserError(
            f"{where}: is of another configuration, {difference}; resume with the run's own options, "
            "or give another --out"
        )
