"""Training steps that the host launches one ahead of what it reads.

What a step says, a few numbers and the pretext's logits, is copied to page-locked memory behind it, and the host
reads it when the next step is on its way: the device never waits for the host. A step that is not finite marks
itself and every step after it, none of which writes (device_step.py), so that what the host finds one step later is
the state that the bad step saw; its batch is kept until then.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .captured_step import CapturedStep
from .config import Config
from .data import Batch
from .device_step import StepOutput, device_step
from .method import Method
from .optim import AdamWEMA
from .pretexts import Detection
from .step import StepResult, refuse_non_finite, step_numbers
from .step_input import InputQueue


@dataclass
class InFlight:
    """A step that was launched.

    step: of the run, how many came before it; result: waits, and may be NonFiniteError; counts: the optimiser's
    steps and late_steps before it.
    """

    step: int
    batch: Batch
    result: Callable[[], StepResult]
    is_done: Callable[[], bool] = lambda: True
    counts: tuple[int, int] = (0, 0)


class StepQueue:
    """Launches steps of `method` on its device. captured: as a CUDA graph.

    On the CPU, where every copy and every step is done when its call returns, it does the same in the same order.
    """

    def __init__(self, method: Method, optimizer: AdamWEMA, config: Config, *, captured: bool):
        self._method, self._optimizer, self._config, self._captured = method, optimizer, config, captured
        self._device = torch.device(config.run.device)
        self._backend = torch.cuda if self._device.type == "cuda" else torch.cpu
        self._stream = self._backend.Stream(self._device)
        self._found_inf = torch.zeros((), device=self._device)
        self._input: InputQueue | None = None  # made like the first batch

    def launch(self, batch: Batch, step: int, *, progress: float, next_progress: Callable[[], float]) -> InFlight:
        """The step after `step` others on a batch in the host's memory; its arguments are training_step's.

        next_progress is asked before the step, which moves the teacher's momentum of a run with a --budget by the
        share of one step.
        """
        counts = self._optimizer.steps, self._optimizer.late_steps
        numbers = step_numbers(self._method, self._optimizer, self._config, batch.epoch, progress, next_progress())
        schedule = self._method.framework.schedule(batch.epoch)
        self._stream.wait_stream(self._backend.current_stream(self._device))
        with self._backend.stream(self._stream):
            if self._input is None:
                self._prepare(batch)
            self._input.send(batch, (*numbers, *schedule.values()))
            output = self._run()
            metrics, detection = _on_host(output.metrics), output.detection
            if detection is not None:
                detection = Detection(*map(_on_host, detection))
            done = self._backend.Event()
            done.record(self._stream)

        def result() -> StepResult:
            done.synchronize()
            return _read(metrics, output.terms, numbers.lr, detection)

        return InFlight(step, batch, result, done.query, counts)

    def _prepare(self, batch: Batch) -> None:
        """Memory for every step and, with `captured`, the graph to be."""
        self._input = InputQueue(self._method, batch, self._config.run.seed, self._device, self._backend)
        arguments = self._method, self._optimizer, self._input.fixed, self._found_inf
        self._run: Callable[[], StepOutput] = (
            CapturedStep(*arguments) if self._captured else lambda: device_step(*arguments)
        )

    def join(self) -> None:
        """The current stream goes on after every step that was launched; the host does not wait."""
        self._backend.current_stream(self._device).wait_stream(self._stream)

    def synchronize(self) -> None:
        """Waits until every step that was launched is over: from here on the default stream sees its state."""
        if self._device.type == "cuda":
            self._stream.synchronize()


def _on_host(tensor: Tensor) -> Tensor:
    """A copy, page-locked and on its way where `tensor` is on a GPU."""
    tensor = tensor.detach()
    return tensor.to("cpu", non_blocking=True) if tensor.is_cuda else tensor.clone()


def _read(metrics: Tensor, terms: tuple[str, ...], lr: float, detection: Detection | None) -> StepResult:
    loss, framework_loss, grad_norm, found_inf, *values = metrics.tolist()
    named = dict(zip(terms, values, strict=True))
    if found_inf:
        refuse_non_finite(loss, grad_norm, named)
    return StepResult(loss, framework_loss, named, grad_norm, lr, detection)
