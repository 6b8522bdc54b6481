"""Runs an op forward and backward and holds every value and gradient against the fp64 oracle."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .inputs import normal
from .poison import poisoned_memory
from .tolerance import GRADIENT_FACTOR, VALUE_FACTOR, ToleranceError, require_close, size

Op = Callable[..., Tensor | tuple[Tensor, ...]]
Tensors = dict[str, Tensor | None]
# below so many elements, eager's own error is luck
FEW_ELEMENTS = 512
NEIGHBOURS = 6


def values_and_gradients(op: Op, tensors: Tensors, wanted: Sequence[str] = ()) -> dict[str, Tensor]:
    """op(**tensors) and the gradients of the inputs in `wanted` under a fixed random cotangent.

    Returns {"value 0": ..., "d x": ...}. Layouts of the inputs are kept; no input is written to.
    """
    # detach keeps the strides of an input, which clone would not
    inputs = {name: tensor.detach().requires_grad_() if name in wanted else tensor for name, tensor in tensors.items()}
    outputs = op(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"value {i}": output.detach() for i, output in enumerate(outputs)}
    if wanted:
        roots = [output for output in outputs if output.requires_grad]
        cotangents = [
            normal(*root.shape, seed=1000 + i, device=root.device.type).bfloat16().to(root.dtype)
            for i, root in enumerate(roots)
        ]
        gradients = torch.autograd.grad(roots, [inputs[name] for name in wanted], cotangents)
        results |= {f"d {name}": gradient for name, gradient in zip(wanted, gradients)}
    return results


def _map_floating(tensors: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    return {
        name: change(tensor) if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _neighbours(tensors: Tensors, results: dict[str, Tensor]) -> list[Tensors]:
    """Inputs like these, every number moved by some per cent; none where every result has enough elements."""
    if min(result.numel() for result in results.values()) >= FEW_ELEMENTS:
        return []
    return [
        _map_floating(
            tensors,
            lambda t, seed=seed: t * (1 + normal(*t.shape, seed=seed, dtype=t.dtype, device=t.device.type) / 16),
        )
        for seed in range(2000, 2000 + NEIGHBOURS)
    ]


def check(op: Op, eager: Op, oracle: Op, tensors: Tensors, wanted: Sequence[str] = ()) -> None:
    """Holds op against oracle (given fp64 inputs) with the tolerance derived from eager (plain PyTorch)."""
    exact = values_and_gradients(oracle, _map_floating(tensors, Tensor.double), wanted)
    with poisoned_memory():
        actual = values_and_gradients(op, tensors, wanted)
    plain = values_and_gradients(eager, tensors, wanted)
    pairs = [(plain, exact)]
    for near in _neighbours(tensors, exact):
        near_exact = values_and_gradients(oracle, _map_floating(near, Tensor.double), wanted)
        pairs.append((values_and_gradients(eager, near, wanted), near_exact))
    for name, result in actual.items():
        if result.dtype != plain[name].dtype:
            raise ToleranceError(f"{name}: {result.dtype}, expected {plain[name].dtype}")
        errors = [size(near[name].double() - near_exact[name]) for near, near_exact in pairs]
        factor = GRADIENT_FACTOR if name.startswith("d ") else VALUE_FACTOR
        require_close(name, result, exact[name], errors, factor=factor)


def require_same_bits(op: Op, tensors: Tensors, wanted: Sequence[str] = ()) -> None:
    """AssertionError unless two runs give the same bits, values and gradients."""
    first, second = (values_and_gradients(op, tensors, wanted) for _ in range(2))
    for name, result in first.items():
        if not torch.equal(result, second[name]):
            raise AssertionError(f"{name} differs between two runs")


def require_one_graph(op: Op, tensors: Tensors, wanted: Sequence[str] = ()) -> None:
    """An error of torch.compile unless op, forward and backward, is captured without a graph break."""
    torch.compiler.reset()
    values_and_gradients(torch.compile(op, backend="aot_eager", fullgraph=True), tensors, wanted)
