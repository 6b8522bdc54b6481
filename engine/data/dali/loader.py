"""Batches decoded and augmented by DALI ahead of the step, by threads of this process."""

import contextlib
import os
import queue
import threading
from collections.abc import Collection

import torch

from ..batch import Batch
from ..gate import Gate, Pausable
from .batches import make_batches
from .inputs import StepInputsOf

CPU = torch.device("cpu")
POLL_S = 0.1  # how soon the thread sees that it shall end


class DaliLoader(Pausable):
    """An endless iterator of the batches of steps start_step, start_step + 1, ...; a context manager.

    threads: that decode and augment. prefetch: batches ready ahead, beside the one or two in the making. cores: where
    those threads may run; none: where this process may. device: the views are made there, and stay. hardware: a GPU's
    JPEG engine takes part. Raises from `next` what the step's samples raise.
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
        hardware: bool = True,
    ):
        self.steps_per_epoch = inputs.order.steps_per_epoch
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        self._closing = threading.Event()
        self._gate = Gate()
        self._maker = make_batches(inputs, threads=threads, device=device, hardware=hardware)
        self._thread = threading.Thread(target=self._run, args=(start_step, cores), name="misplace-dali", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Returns when no work is done ahead any more, until `resume`; what is ready stays ready."""
        self._gate.close(alive=self._thread.is_alive)
        self._maker.settle()

    def resume(self) -> None:
        self._gate.open()

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
        self._gate.open()
        self._thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()

    def _run(self, start_step: int, cores: Collection[int] | None) -> None:
        try:
            if cores:
                os.sched_setaffinity(0, cores)  # of this thread and those that start from it
            with contextlib.closing(self._maker):
                batches = self._maker.batches(start_step)
                while True:
                    with self._gate.working():
                        batch = next(batches)
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
