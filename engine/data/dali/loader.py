"""Batches decoded and augmented by DALI ahead of the step, by threads of this process."""

import contextlib
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Collection

import numpy as np
import torch

from ..batch import Batch
from . import graph
from .inputs import NO_FILE, NO_PICTURE, StepInputs, StepInputsOf

CPU = torch.device("cpu")
POLL_S = 0.1  # how soon the thread sees that it shall end


class DaliLoader:
    """An endless iterator of the batches of steps start_step, start_step + 1, ...; a context manager.

    threads: of DALI, that decode and augment. prefetch: batches ready ahead, beside the graph.QUEUE that DALI has in
    hand. cores: where those threads may run; none: where this process may. device: the views are made and stay
    there. Raises from `next` what the step's samples raise.
    """

    def __init__(
        self,
        inputs: StepInputsOf,
        *,
        start_step: int = 0,
        threads: int = 1,
        prefetch: int = 2,
        cores: Collection[int] | None = None,
        device: torch.device = CPU,
    ):
        self.steps_per_epoch = inputs.order.steps_per_epoch
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        self._closing = threading.Event()
        maker = _Maker(inputs, threads, cores, device)
        self._thread = threading.Thread(target=self._run, args=(maker, start_step), name="misplace-dali", daemon=True)
        self._thread.start()

    def __iter__(self) -> "DaliLoader":
        return self

    def __next__(self) -> Batch:
        if self._closing.is_set():
            raise StopIteration
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        return batch

    def __enter__(self) -> "DaliLoader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; can be called twice."""
        self._closing.set()
        self._thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()

    def _run(self, maker: "_Maker", start_step: int) -> None:
        try:
            with contextlib.closing(maker):
                for batch in maker.batches(start_step):
                    if not self._hand_over(batch):
                        return
        except BaseException as error:  # whatever it is, it is the trainer's to see
            self._hand_over(error)

    def _hand_over(self, item: Batch | BaseException) -> bool:
        """False once the loader is closing."""
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=POLL_S)
                return True
        return False


class _Maker:
    """Keeps a DALI pipeline fed; lives in the loader's thread."""

    def __init__(self, inputs: StepInputsOf, threads: int, cores: Collection[int] | None, device: torch.device):
        self._inputs, self._threads, self._cores, self._device = inputs, threads, cores, device
        self._pending: deque[tuple[int, StepInputs]] = deque()
        self._pipeline = None

    def batches(self, start_step: int):
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread and those that DALI starts from it
        self._build()
        for step in itertools.count(start_step):
            self._schedule(step, self._inputs[step])
            if len(self._pending) == graph.QUEUE:
                yield self._finish()

    def close(self) -> None:
        self._pipeline = None
        self._inputs.close()

    def _build(self) -> None:
        self._fed = 0
        inputs = self._inputs
        device_id = (self._device.index or 0) if self._device.type == "cuda" else None
        self._pipeline, self._names = graph.build(
            inputs.kinds,
            inputs.augment,
            batch_size=inputs.order.batch_size // inputs.order.world_size,
            threads=self._threads,
            device_id=device_id,
        )

    def _schedule(self, step: int, given: StepInputs) -> None:
        """Hand a step to DALI, which begins it at once."""
        self._pending.append((step, given))
        no_picture = NO_PICTURE[self._inputs.source.channels]
        feed = {
            "is_file": np.array([sample.is_file for sample in given.samples]),
            "file": [sample.data if sample.is_file else NO_FILE for sample in given.samples],
            "picture": [no_picture if sample.is_file else sample.data for sample in given.samples],
        }
        for number, arrays in enumerate(given.views):
            feed |= {f"{name}_{number}": array for name, array in arrays.items()}
        for name in self._names:
            self._pipeline.feed_input(name, feed[name])
        self._fed += 1
        if self._fed >= graph.QUEUE:  # DALI begins with as many as it holds
            self._pipeline.schedule_run()

    def _finish(self) -> Batch:
        """The first of the steps in DALI's hands; once more from Pillow's pixels where DALI refuses a file of it."""
        try:
            outputs = self._pipeline.outputs()
        except RuntimeError:
            outputs = self._again()
        _, given = self._pending.popleft()
        views = tuple(torch.from_dlpack(view.as_tensor()) for view in outputs)
        return Batch(views, given.index, given.epoch, given.failures)

    def _again(self):
        """A new pipeline for the steps in hand: one that has failed gives nothing any more."""
        steps = [step for step, _ in self._pending]
        self._pending.clear()
        self._build()
        self._schedule(steps[0], self._inputs.decoded(steps[0]))
        for step in steps[1:]:
            self._schedule(step, self._inputs[step])
        return self._pipeline.outputs()
