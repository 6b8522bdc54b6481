"""info_nce: the rows are read once and the gradient of the queries is written; bound by its matrix products.

MoCo v3 with keys of a teacher, which need no gradient: the similarities and the gradient of the queries, 4 N M D
operations. NT-Xent of one process, whose rows are queries and keys: the similarities are symmetric, so half of them
and one product for both gradients, 3 N^2 D.
"""

from functools import partial

import torch
from torch import Tensor

from misplace.kernels import info_nce, nt_xent
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, VALUE_FACTOR, size

from .. import peers
from ..peers.info_nce import MOCO_TEMPERATURE, SIMCLR_TEMPERATURE, eager_info_nce, eager_nt_xent, forward_backward
from ..registry import Case, Check, Thunk

DTYPES = (torch.bfloat16, torch.float32)
# rows, width
FULL = [(256, 256), (1024, 256), (4096, 256)]
TINY = [(8, 16)]

Inputs = tuple[Tensor, ...]  # query [N, D], and key [N, D] where it is another tensor


def _moco(query: Tensor, key: Tensor, *, impl: str) -> Tensor:
    return info_nce(query, key, temperature=MOCO_TEMPERATURE, impl=impl)


def _simclr(rows: Tensor, *, impl: str) -> Tensor:
    return nt_xent(rows, rows, temperature=SIMCLR_TEMPERATURE, impl=impl)


# in the shape's name -> ours, eager, tensors, operations over rows^2 * width
FORMS = {"MoCo": (_moco, eager_info_nce, 2, 4), "NT-Xent": (_simclr, eager_nt_xent, 1, 3)}


def _inputs(count: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    query, *keys = (torch.randn(rows, width, generator=generator).to(device, dtype) for _ in range(count))
    return query.requires_grad_(), *keys


def _ours(op, inputs: Inputs, impl: str) -> Thunk:
    return partial(forward_backward, partial(op, impl=impl), *inputs)


def _peer(function, inputs: Inputs) -> Thunk:
    return partial(forward_backward, function, *inputs)


def _compiled(function, inputs: Inputs) -> Thunk:
    return _peer(peers.compiled(function, inputs[0].device), inputs)


def _check(op, eager, inputs: Inputs, impl: str) -> Check:
    """The largest share of the derived tolerance that the loss or the gradient takes; above 1 it is wrong."""
    wide = [tensor.detach().double() for tensor in inputs]
    exact = forward_backward(partial(op, impl="reference"), wide[0].requires_grad_(), *wide[1:])
    plain, actual = _peer(eager, inputs)(), _ours(op, inputs, impl)()
    shares = []
    for ours, theirs, oracle, factor in zip(actual, plain, exact, (VALUE_FACTOR, GRADIENT_FACTOR), strict=True):
        # one loss of eager may be right by luck: at least what rounding it to the dtype of the rows costs
        band = torch.finfo(inputs[0].dtype).eps * size(oracle).largest
        allowed = factor * size(theirs.double() - oracle).largest + band
        shares.append(size(ours.double() - oracle).largest / allowed)
    return Check(error=max(shares), bound=1.0)


def cases(*, tiny: bool) -> list[Case]:
    return [
        Case(
            op="info_nce",
            mode="forward+backward",
            shape=f"{form} N=M={rows} D={width}",
            dtype=str(dtype).removeprefix("torch."),
            make_inputs=partial(_inputs, count, rows, width, dtype),
            ours=partial(_ours, op),
            peers={"eager": partial(_peer, eager), "compile": partial(_compiled, eager)},
            check=partial(_check, op, eager),
            bytes_moved=(count + 1) * rows * width * dtype.itemsize,
            operations=products * rows * rows * width,
        )
        for rows, width in (TINY if tiny else FULL)
        for form, (op, eager, count, products) in FORMS.items()
        for dtype in DTYPES
    ]
