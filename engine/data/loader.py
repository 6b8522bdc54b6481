"""Batches step after step, rendered here or ahead of time by worker processes."""

import contextlib
import functools
import itertools
import multiprocessing
import os
from collections.abc import Collection, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from misplace.engine.errors import UserError

from .batch import Batch
from .gate import Gate, Pausable
from .pillow import PillowPipeline
from .workers import check_shared_memory, describe_death, quiet_fork, settle_in


class PillowLoader(Pausable):
    """An endless iterator of the batches of steps start_step, start_step + 1, ...; a context manager.

    workers: processes that render ahead (0: none, each batch is rendered when asked for). prefetch: batches
    ahead per worker; at most workers * prefetch batches exist beside the one in use and the one before it.
    worker_cores: where workers may run; none: where this process may. Workers leave stopping to this process:
    they ignore SIGINT and SIGTERM, end in `close`, and within seconds where this process is gone. Raises
    UserError from `next` for what a step cannot do and for a worker that died.
    """

    def __init__(
        self,
        pipeline: PillowPipeline,
        *,
        start_step: int = 0,
        workers: int = 0,
        prefetch: int = 2,
        worker_cores: Collection[int] | None = None,
    ):
        self.steps_per_epoch = pipeline.order.steps_per_epoch
        self._processes: list = []
        self._gate: Gate | None = None
        if workers == 0:
            self._batches = map(_Steps(pipeline).__getitem__, itertools.count(start_step))
        else:
            check_shared_memory(workers * prefetch + 2, _bytes_of_a_batch(pipeline))
            settle = functools.partial(settle_in, trainer=os.getpid(), cores=worker_cores)
            self._batches = self._start(pipeline, start_step, workers, prefetch, settle)

    def __iter__(self) -> "PillowLoader":
        return self

    def __next__(self) -> Batch:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            deaths = [describe_death(process) for process in self._processes if not process.is_alive()]
            if not deaths:
                raise
            how = ", ".join(deaths)
            raise UserError(f"a data worker died ({how}): lower --data.workers, or 0 for none") from error
        if isinstance(batch, UserError):
            raise batch
        return batch

    def __enter__(self) -> "PillowLoader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def pause(self) -> None:
        """Returns when no worker renders ahead any more, until `resume`; what is ready stays ready."""
        if self._gate is not None:
            self._gate.close(alive=lambda: all(process.is_alive() for process in self._processes))

    def resume(self) -> None:
        if self._gate is not None:
            self._gate.open()

    def close(self) -> None:
        """End the workers; can be called twice."""
        self.resume()
        self._batches = iter(())  # the DataLoader's iterator asks its workers to end when it is dropped
        for process in self._processes:
            process.join(timeout=1)
            process.kill()
            process.join()
        self._processes = []

    def _start(self, pipeline: PillowPipeline, start_step: int, workers: int, prefetch: int, settle) -> Iterator:
        self._gate = Gate(workers, multiprocessing.get_context("fork"))
        with quiet_fork():
            loader = DataLoader(
                _Steps(pipeline, self._gate),
                batch_size=None,
                sampler=_StepsFrom(start_step),
                num_workers=workers,
                prefetch_factor=prefetch,
                collate_fn=_as_it_is,
                worker_init_fn=settle,
                multiprocessing_context="fork",
                generator=torch.Generator(),  # else starting it would draw from the global generator
            )
            batches = iter(loader)
        self._processes = list(batches._workers)
        return batches


class _Steps(Dataset):
    """Step -> Batch.

    A UserError is handed over as a value: raised in a worker, it would come with a traceback.
    """

    def __init__(self, pipeline: PillowPipeline, gate: Gate | None = None):
        self.pipeline, self._gate = pipeline, gate

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            with self._gate.working() if self._gate else contextlib.nullcontext():
                return self.pipeline[step]
        except UserError as error:
            return error


class _StepsFrom:
    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def _as_it_is(batch):
    return batch


def _bytes_of_a_batch(pipeline: PillowPipeline) -> int:
    pixels = sum(kind.size**2 for kind in pipeline.kinds) * pipeline.source.channels
    return pipeline.order.batch_size // pipeline.order.world_size * pixels
