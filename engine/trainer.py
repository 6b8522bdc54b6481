"""A pretraining run: from a configuration to a trained, evaluated, reported encoder in a run folder."""

import functools
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from . import finish
from .auroc import auroc
from .captured_step import why_not_captured
from .checkpoint import latest, load, save
from .clock import TrainingClock
from .config import Config, to_plain
from .cpu_training import cpu_training
from .data import Batch, Loader, Quarantine, Source, describe, make_loader, open_source
from .evaluation import KnnTask, patch_mean
from .implementations import implementation_names, resolve_implementations
from .meter import Meter
from .method import DTYPES, attention_sizes, build_method, build_optimizer, encoder_arguments
from .metrics_log import MetricsLog
from .non_finite import stop_with_capture
from .progress import Display, ProgressDisplay, print_implementations
from .resolve import horizon, resolve
from .run_folder import RunFolder
from .same_run import refuse_other_config
from .signals import StopSignals
from .state import load_state, state_tensors
from .step import NonFiniteError, StepResult, training_step
from .step_queue import InFlight, StepQueue
from .watches import watches


def pretrain(config: Config) -> Path:
    """Runs `config` to its end, or to SIGTERM; returns the run folder. Shown as `misplace pretrain`."""
    source = open_source(config.data.source)
    config = resolve(config.validate(), source)
    with RunFolder.create(config.run.out, overwrite=config.run.overwrite, resume=config.run.resume) as folder:
        is_cpu = torch.device(config.run.device).type == "cpu"
        with cpu_training(config.data.workers) if is_cpu else nullcontext() as cores:
            trainer = Trainer(config, source, folder, worker_cores=cores and cores.workers)
            trainer.announce()
            with StopSignals() as signals:
                trainer.fit(signals)
        if trainer.finished:
            finish.evaluate_and_report(trainer)
        else:
            print(f"stopped at step {trainer.step}, saved; go on with --resume --out {folder.path}", flush=True)
    return folder.path


class Trainer:
    """The state of a run and its loop. worker_cores: where data workers may run; none: anywhere."""

    def __init__(
        self, config: Config, source: Source, folder: RunFolder, *, worker_cores: Collection[int] | None = None
    ):
        self.worker_cores = worker_cores
        self.config, self.source, self.folder = config, source, folder
        self.horizon = horizon(config, source)
        self.impls = resolve_implementations(torch.device(config.run.device), config.run.impl)
        self.method = build_method(config, source, self.impls)
        self.optimizer = build_optimizer(self.method, config, self.impls)
        self.step, self.clock = 0, TrainingClock()  # step: how many were launched
        self.in_flight: deque[InFlight] = deque()  # those of them whose results were not read
        self.queue = self._step_queue()
        self.model = encoder_arguments(config, source)
        self._start_or_resume()

    def announce(self) -> None:
        """Says what the run computes and loads with."""
        data = self.config.data
        print_implementations(self.implementation_names())
        print(describe(data.pipeline, data.workers, torch.device(self.config.run.device)), flush=True)

    @property
    def progress(self) -> float:
        return self.horizon.progress(self.step, self.clock.elapsed)

    @property
    def finished(self) -> bool:
        return self.horizon.done(self.step, self.clock.elapsed)

    def fit(self, signals: StopSignals) -> None:
        """Steps until the horizon or a signal; saves at the end of either."""
        with self.opened(ProgressDisplay(self.horizon)):
            self.clock.start()
            while not (self.finished or signals.stop_requested):
                self._one_step()
                self._save_if_due()
            self._read_results()
            self.clock.pause()
            if self._saved_at[0] != self.step:
                self.save()

    @contextmanager
    def opened(self, display: Display) -> Iterator[None]:
        """What steps need: data, a log, and `display` for their rows."""
        self.meter = Meter(self.config.data.batch_size)
        self._watches = watches(self.config, self.method.framework)
        self._knn_mark = int(self.progress / self.config.run.knn_every) if self.config.run.knn_every else 0
        with (
            self._loader() as self.loader,  # first: Pillow's forks its workers, and TensorBoard starts threads
            self._open_log() as self.log,
            display as self.display,
        ):
            self._batches = self._usable(self.loader)
            yield

    def train_until(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """A slice of an opened run: steps until its clock is as near to `seconds` as whole steps allow, or `stop()`.

        Data is prepared ahead inside the slice only, and all that was begun in it is paid for in it.
        """
        with self.meter.running():
            self.clock.start()
            self.loader.resume()
            while not (stop() or self.clock.elapsed + self._seconds_per_step / 2 >= seconds):
                self._one_step()
            self._read_results()
            self.loader.pause()
            self.clock.pause()

    def log_knn(self) -> None:
        """A row of metrics with nothing but where an opened run stands and its k-NN there."""
        images = self.step * self.config.data.batch_size
        where = {"step": self.step, "images": images, "seconds": self.clock.elapsed}
        self.log.write({**where, "knn": self._online_knn()})

    @property
    def _seconds_per_step(self) -> float:
        """On average so far; 0 before the first."""
        return self.clock.elapsed / self.step if self.step else 0.0

    def save(self) -> None:
        """A checkpoint of the state between two steps."""
        self._read_results()
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
            refuse_other_config(self.folder.read_config(), plain, self.folder.path)
        if path is not None:
            checkpoint = load(path)
            refuse_other_config(checkpoint.state["config"], plain, path)
            load_state(checkpoint, self.method, self.optimizer)
            self.step, self.clock = checkpoint.step, TrainingClock(checkpoint.state["seconds"])
        self.folder.write_config(plain)
        impls = self.implementation_names()
        self.folder.write_environment(device=self.config.run.device, implementations=impls)
        self._saved_at = (self.step if path is not None else -1, self.clock.elapsed)

    def implementation_names(self) -> dict[str, str]:
        """op -> what this run computes it with."""
        run, sizes = self.config.run, attention_sizes(self.method, self.config)
        return implementation_names(self.impls, torch.device(run.device), DTYPES[run.precision], sizes)

    def _open_log(self) -> MetricsLog:
        resume_step = self.step if self.folder.resumed else None
        return MetricsLog(self.folder.metrics, tensorboard=self.folder.tensorboard, resume_step=resume_step)

    def _loader(self) -> Loader:
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
            worker_cores=self.worker_cores,
            pipeline=data.pipeline,
            device=torch.device(self.config.run.device),
            hardware=data.hardware_decode,
        )

    def _step_queue(self) -> StepQueue | None:
        """On the CPU none: there a step is over when it returns."""
        run, device = self.config.run, torch.device(self.config.run.device)
        if device.type == "cpu":
            return None
        reason = why_not_captured(self.impls, device)
        if run.cuda_graph and reason:
            print(f"no CUDA graph: {reason}", flush=True)
        return StepQueue(self.method, self.optimizer, self.config, captured=run.cuda_graph and not reason)

    def _usable(self, loader: Loader) -> Iterator[Batch]:
        """Its batches, failures written down."""
        quarantine = Quarantine(self.folder.quarantine, len(self.source), self.config.data.max_bad_share)
        for batch in loader:
            quarantine.add(batch.failures)
            yield batch

    def _one_step(self) -> None:
        with self.meter.waiting(hidden=lambda: bool(self.in_flight) and not self.in_flight[-1].is_done()):
            batch = next(self._batches)
        try:
            self.in_flight.append(self._launch(batch))
        except NonFiniteError as error:
            stop_with_capture(self, batch, error)
        self.step += 1
        knn_due = self._knn_due()
        everything = self.queue is None or knn_due or self.finished
        self._read_results(keep=0 if everything else 1, knn=knn_due)

    def _launch(self, batch: Batch) -> InFlight:
        progress = {
            "progress": self.progress,
            "next_progress": lambda: self.horizon.progress(self.step + 1, self.clock.elapsed),
        }
        if self.queue is not None:
            return self.queue.launch(batch, self.step, **progress)
        result = training_step(self.method, self.optimizer, batch, self.config, **progress)
        return InFlight(self.step, batch, lambda: result)

    def _read_results(self, *, keep: int = 0, knn: bool = False) -> None:
        """The results of all steps in flight but the last `keep`; knn: the last of them is followed by a k-NN."""
        while len(self.in_flight) > keep:
            flight = self.in_flight.popleft()
            result = self._result(flight)
            self.meter.count_step()
            for watch in self._watches:
                if notice := watch(flight.step + 1, result):
                    self.display.message(notice)
            is_last = not self.in_flight
            accuracy = self._online_knn() if knn and is_last else None
            due = (flight.step + 1) % self.config.run.log_every == 0 or (is_last and self.finished)
            if due or accuracy is not None:
                self._write_metrics(flight, result, accuracy)
        if self.queue is not None and not keep:
            self.queue.synchronize()

    def _result(self, flight: InFlight) -> StepResult:
        try:
            return flight.result()
        except NonFiniteError as error:
            self.queue.synchronize()
            self.step = flight.step  # it and the steps after it have changed nothing
            self.optimizer.steps, self.optimizer.late_steps = flight.counts
            stop_with_capture(self, flight.batch, error)

    def _write_metrics(self, flight: InFlight, result: StepResult, accuracy: float | None) -> None:
        detection, step = result.detection, flight.step + 1
        row = {
            "step": step,
            "epoch": flight.batch.epoch,
            "images": step * self.config.data.batch_size,
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

    def _knn_due(self) -> bool:
        """Whether another share run.knn_every of the run is over."""
        every = self.config.run.knn_every
        if not every or not self.source.class_names or self.finished:
            return False
        mark = int(self.progress / every)
        due, self._knn_mark = mark > self._knn_mark, mark
        return due

    def _online_knn(self) -> float:
        """k-NN of the encoder, outside training time, in which no data is prepared either."""
        with self.loader.paused(), self.clock.paused(), self.meter.excluded():
            return self.online_task.top1(patch_mean(self.method.encoder))

    @functools.cached_property
    def online_task(self) -> KnnTask:
        """A small fixed part of the data, for k-NN on the way."""
        return KnnTask(self.config.data.source, self.config.model.image_size, num_train=2000, num_test=1000)
