"""A step's input on its way to the device while the step before it runs.

Two places take turns. What of a batch is on the host is copied into the page-locked memory of one, from there to the
device by a stream that does nothing else; what is on the device already goes there at once. Its plan is drawn on that
stream too. The stream of the steps then moves it, within the
device's memory, to where every step reads, the one address that a captured graph knows.
"""

import torch
from torch import Tensor

from misplace.kernels import TokenPlan

from .data import Batch
from .device_step import StepInput
from .method import Method
from .optim import StepNumbers
from .step import student_plan


class _Place:
    """Memory for one batch, here and there. copied: it is on the device; taken: and where the steps read."""

    def __init__(self, batch: Batch, plan: TokenPlan, num_numbers: int, device: torch.device, backend):
        is_cuda = device.type == "cuda"
        tensors = [*batch.views, batch.index]
        self.host = [None if t.is_cuda else torch.empty_like(t, pin_memory=is_cuda) for t in tensors]
        self.numbers = torch.empty(num_numbers, dtype=torch.float64, pin_memory=is_cuda)
        self.device = [torch.empty_like(tensor, device=device) for tensor in tensors]
        self.plan = TokenPlan(*map(torch.empty_like, plan))
        self.copied, self.taken = backend.Event(), backend.Event()


class InputQueue:
    """Where the steps of `method` read, `fixed`, and what brings the next batch there.

    batch: one like all that follow. backend: torch.cuda, or torch.cpu, where everything happens at once.
    """

    def __init__(self, method: Method, batch: Batch, seed: int, device: torch.device, backend):
        self._method, self._seed, self._backend = method, seed, backend
        self._stream = backend.Stream(device)
        plan = student_plan(method, batch.to(device), seed)
        num_numbers = len(StepNumbers._fields) + len(method.framework.schedule(0))
        self._places = [_Place(batch, plan, num_numbers, device, backend) for _ in range(2)]
        views = tuple(torch.empty_like(view, device=device) for view in batch.views)
        numbers = torch.empty(num_numbers, dtype=torch.float64, device=device)
        self.fixed = StepInput(views, TokenPlan(*map(torch.empty_like, plan)), numbers)
        self._stream.wait_stream(backend.current_stream())

    def send(self, batch: Batch, numbers: tuple[float, ...]) -> None:
        """Brings a batch and the numbers of its step to `fixed`, in the order of the current stream."""
        place = self._places.pop(0)
        self._places.append(place)
        place.taken.synchronize()  # of two steps ago
        tensors = [*batch.views, batch.index]
        staged = [tensor if here is None else here.copy_(tensor) for here, tensor in zip(place.host, tensors)]
        place.numbers.copy_(torch.tensor(numbers, dtype=torch.float64))
        with self._backend.stream(self._stream):
            _copy(place.device, staged)
            *views, index = place.device
            _copy(place.plan, student_plan(self._method, batch._replace(views=tuple(views), index=index), self._seed))
            place.copied.record(self._stream)
        steps = self._backend.current_stream()
        steps.wait_event(place.copied)
        _copy([*self.fixed.views, *self.fixed.plan], [*views, *place.plan])
        self.fixed.numbers.copy_(place.numbers, non_blocking=True)
        place.taken.record(steps)


def _copy(to: list[Tensor] | TokenPlan, source: list[Tensor] | TokenPlan) -> None:
    for here, there in zip(to, source, strict=True):
        here.copy_(there, non_blocking=True)
