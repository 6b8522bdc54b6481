"""Every call of a public op inside a real step: shapes, and the time that its forward and its backward take there."""

import contextlib
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from misplace import kernels
from misplace.engine.optim import adamw_ema as optimizer

Moment = Any  # a float of the CPU's clock, or a CUDA event


class Site(NamedTuple):
    """Calls of one op that cost the same: the same implementation, tensors and gradients."""

    op: str
    impl: str
    inputs: tuple[str, ...]  # dtype and shape of every tensor; "*" where it gets a gradient
    outputs: tuple[str, ...]


@dataclass
class Example:
    """The first call of a site: its arguments by name, without their history."""

    arguments: dict[str, Any]
    outputs: list[Tensor]


class Spans(NamedTuple):
    """Milliseconds in one step, all calls of a site together."""

    calls: int
    forward: float
    backward: float


@dataclass
class _Calls:
    forward: list[tuple[Moment, Moment]] = field(default_factory=list)
    backward: list[tuple[Moment, Moment]] = field(default_factory=list)


class Recorder:
    """Use `step` around every step to be recorded; then `sites` has a Spans per step, and `examples` a call each."""

    def __init__(self, device: torch.device):
        self._clock = _CudaClock() if device.type == "cuda" else _CpuClock()
        self._device = device
        self._calls: dict[Site, _Calls] = {}
        self.sites: dict[Site, list[Spans]] = defaultdict(list)
        self.examples: dict[Site, Example] = {}
        self.step_ms: list[float] = []

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Records what runs inside."""
        self._calls = defaultdict(_Calls)
        with replaced_ops(self._recorded):
            start = self._clock.now()
            yield
            end = self._clock.now()
        self._clock.settle()
        self.step_ms.append(self._clock.ms(start, end))
        for site, calls in self._calls.items():
            forward, backward = (sum(self._clock.ms(*span) for span in spans) for spans in vars(calls).values())
            self.sites[site].append(Spans(len(calls.forward), forward, backward))

    def _recorded(self, name: str, op: Callable, as_public: Callable[[dict], dict] = dict) -> Callable:
        """`op`, timed; as_public turns its arguments into those of the public op `name`."""
        signature = inspect.signature(op)

        def call(*args, **kwargs):
            if (
                torch._C._current_graph_task_id() != -1
            ):  # made again inside the backward of another op, whose time it is
                return op(*args, **kwargs)
            arguments = dict(signature.bind(*args, **kwargs).arguments)
            leaves, tree = tree_flatten(arguments)
            gets_gradient = [_gets_gradient(leaf) for leaf in leaves]
            ends: list[Moment] = []
            if any(gets_gradient):
                leaves = _marked(leaves, gets_gradient, lambda: ends.append(self._clock.now()))
            start = self._clock.now()
            result = op(**tree_unflatten(leaves, tree))
            span = start, self._clock.now()
            outputs, out_tree = tree_flatten(result)
            arguments = as_public(arguments)
            site = self._site(name, arguments, outputs)
            calls = self._calls[site]
            calls.forward.append(span)
            if site not in self.examples:
                self.examples[site] = _example(arguments, outputs)
            give_gradient = [_gets_gradient(leaf) for leaf in outputs]
            if not any(give_gradient):
                return result

            def begins() -> None:  # backward: the op's outputs come first, and `ends` is filled by its inputs
                calls.backward.append(_Backward(self._clock.now(), ends))

            return tree_unflatten(_marked(outputs, give_gradient, begins), out_tree)

        return call

    def _site(self, name: str, arguments: dict[str, Any], outputs: list) -> Site:
        impl = arguments.get("impl", "auto")
        if name == "attention" and impl == "auto":
            impl = _attention_choice(arguments)
        impl = kernels.resolve_impl(kernels.OP_OF[name], impl, self._device)
        return Site(name, impl.value, _describe(tree_flatten(arguments)[0]), _describe(outputs))


class _Backward:
    """A span whose end is written by a later node of the graph."""

    def __init__(self, start: Moment, ends: list[Moment]):
        self._start, self._ends = start, ends

    def __iter__(self) -> Iterator[Moment]:
        yield self._start
        yield self._ends[-1]


@contextlib.contextmanager
def replaced_ops(wrap: Callable[..., Callable]) -> Iterator[None]:
    """Inside, misplace.kernels.NAME is wrap(NAME, the op) for every function of an op, and so is the optimiser's own
    entry to adamw_ema, on tensors validated once.
    """
    before = {name: getattr(kernels, name) for name in kernels.OP_OF}
    update = optimizer.update
    try:
        for name, op in before.items():
            setattr(kernels, name, wrap(name, op))
        optimizer.update = wrap("adamw_ema", update, _as_lists)
        yield
    finally:
        optimizer.update = update
        for name, op in before.items():
            setattr(kernels, name, op)


def _as_lists(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of kernels.adamw_ema for those of its `update`, without the parameters that have no gradient."""
    tensors, gradients, *_ = arguments.values()
    live = [i for i, gradient in enumerate(gradients) if gradient is not None]
    names = ("parameters", "exp_avg", "exp_avg_sq", "weight_decay", "teacher", "student_copies", "teacher_copies")
    lists = {name: [getattr(tensors, name)[i] for i in live] for name in names}
    others = {name: value for name, value in arguments.items() if name != "tensors"}
    return {**others, "gradients": [gradients[i] for i in live], **lists}


def _attention_choice(arguments: dict[str, Any]) -> str:
    """What "auto" was for a call of attention; one with cu_seqlens tells its max_seqlen."""
    q, k, bounds = arguments["qkv"], arguments.get("k"), arguments.get("cu_seqlens")
    mixed, packed = bounds is not None, k is None
    heads = arguments["num_heads"] if packed else q.shape[-2]
    head_dim = q.shape[-1] // (3 * heads) if packed else q.shape[-1]
    tokens = arguments["max_seqlen"] if mixed else (q if packed else k).shape[1]
    rows = heads * (len(bounds) - 1 if mixed else len(q))
    flags = {"with_gradient": _gets_gradient(q), "mixed": mixed}
    return kernels.attention_choice(q.device, q.dtype, tokens, head_dim, rows, **flags)


class _Mark(torch.autograd.Function):
    """The same tensors; backward tells when all their gradients have arrived."""

    @staticmethod
    def forward(ctx, arrived: Callable[[], None], *tensors: Tensor):
        ctx.arrived = arrived
        ctx.set_materialize_grads(False)
        return tuple(tensor.detach() for tensor in tensors)  # no view: callers may write to it

    @staticmethod
    def backward(ctx, *gradients):
        ctx.arrived()
        return None, *gradients


def _marked(leaves: list, chosen: list[bool], arrived: Callable[[], None]) -> list:
    marked = iter(_Mark.apply(arrived, *(leaf for leaf, is_chosen in zip(leaves, chosen, strict=True) if is_chosen)))
    return [next(marked) if is_chosen else leaf for leaf, is_chosen in zip(leaves, chosen, strict=True)]


def _gets_gradient(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad and torch.is_grad_enabled()


def _describe(leaves: list) -> tuple[str, ...]:
    return tuple(
        f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}{'*' * _gets_gradient(leaf)}"
        for leaf in leaves
        if isinstance(leaf, Tensor)
    )


def _example(arguments: dict[str, Any], outputs: list) -> Example:
    """Cut off from the step's graph; a tensor that got a gradient wants one again."""
    leaves, tree = tree_flatten(arguments)
    leaves = [
        leaf.detach().requires_grad_(_gets_gradient(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    ]
    shapes = [out.detach().requires_grad_(_gets_gradient(out)) for out in outputs if isinstance(out, Tensor)]
    return Example(tree_unflatten(leaves, tree), shapes)


class _CpuClock:
    def now(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        pass

    def ms(self, start: float, end: float) -> float:
        return (end - start) * 1e3


class _CudaClock:
    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        torch.cuda.synchronize()

    def ms(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end)


def medians(spans: list[Spans], num_steps: int) -> Spans:
    """Of a step; a site counts as nothing in the steps that did not have it."""
    spans = [*spans, *[Spans(0, 0.0, 0.0)] * (num_steps - len(spans))]
    calls, forward, backward = (median(column) for column in zip(*spans, strict=True))
    return Spans(round(calls), forward, backward)
