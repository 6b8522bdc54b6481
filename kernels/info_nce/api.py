"""info_nce: contrastive losses between queries and the keys of all ranks, one-sided and NT-Xent."""

import torch
from torch import Tensor

from ..checks import require_device, require_dims, require_floating
from ..impl import Impl, choose_for_dtype
from . import native, reference, stock

SUPPORTED = {
    "cpu": (Impl.NATIVE, Impl.TORCH, Impl.REFERENCE, Impl.TRITON),
    "cuda": (Impl.TRITON, Impl.TORCH, Impl.REFERENCE),
}
DTYPES = {  # the others take any
    Impl.NATIVE: (torch.float32, torch.bfloat16),
    Impl.TRITON: (torch.float32, torch.bfloat16, torch.float16),
}
MAX_TRITON_WIDTH = 512


def info_nce(
    query: Tensor,  # [N, D]
    key: Tensor,  # [M, D], the keys of all ranks
    *,
    temperature: float,
    first_row: int = 0,
    impl: Impl | str = "auto",
) -> Tensor:  # scalar, fp32 (fp64 for fp64 inputs), nats
    """Mean cross entropy of picking, for query i, key first_row + i among all M by cosine / temperature.

    first_row: where this rank's own keys begin. Rows need not be normalised. Differentiable in query and
    key (give the key detached where it comes from a teacher: its gradient is then not computed). The factor
    2 * temperature of MoCo v3 is the caller's. Inputs of two dtypes are promoted. impl="auto" passes over those
    that do not take the input: native takes bf16 and fp32, triton those and fp16 in rows of at most 512 numbers,
    the others any. ValueError for a shape, a device, no queries, temperature <= 0 or a positive beyond the last
    key; TypeError for dtypes.
    """
    return _run(query, key, temperature, first_row, False, impl)


def nt_xent(
    query: Tensor,  # [2 B, D], this rank's first views, then its second views of the same images in the same order
    key: Tensor,  # [M, D], the same of all ranks, one rank after the other; in one process the query itself
    *,
    temperature: float,
    first_row: int = 0,
    impl: Impl | str = "auto",
) -> Tensor:  # scalar, fp32 (fp64 for fp64 inputs), nats
    """Mean cross entropy of picking, for row i, the other view of its image among all M - 1 rows but itself.

    first_row: where this rank's own rows begin in key; row i is key first_row + i, which takes no part, and its
    positive first_row + (i + B) mod 2 B. Differentiable in query and key, to both of which SimCLR's gradient
    flows; given one tensor twice, both gradients go to it. Otherwise as info_nce; ValueError also for an odd
    number of rows.
    """
    return _run(query, key, temperature, first_row, True, impl)


def _run(query: Tensor, key: Tensor, temperature: float, first_row: int, pairs: bool, impl: Impl | str) -> Tensor:
    _validate(query, key, temperature, first_row, pairs)
    if query.dtype != key.dtype:
        dtype = torch.promote_types(query.dtype, key.dtype)
        query, key = query.to(dtype), key.to(dtype)
    module = _implementation(_choose(impl, query))
    return (module.nt_xent if pairs else module.info_nce)(query, key, temperature, first_row)


def _choose(impl: Impl | str, query: Tensor) -> Impl:
    width, supported = query.shape[1], SUPPORTED
    if width > MAX_TRITON_WIDTH:
        if impl == Impl.TRITON:
            raise ValueError(f"info_nce: impl=triton takes widths up to {MAX_TRITON_WIDTH}, not {width}")
        supported = {device: [i for i in offered if i is not Impl.TRITON] for device, offered in SUPPORTED.items()}
    return choose_for_dtype("info_nce", impl, query, supported, DTYPES)


def _implementation(chosen: Impl):
    match chosen:
        case Impl.NATIVE:
            return native
        case Impl.TORCH:
            return stock
        case Impl.REFERENCE:
            return reference
        case _:
            from . import triton

            return triton


def _validate(query: Tensor, key: Tensor, temperature: float, first_row: int, pairs: bool) -> None:
    op, rows = ("nt_xent", "[2 B, D]") if pairs else ("info_nce", "[N, D]")
    require_dims(op, "query", query, 2, rows)
    require_dims(op, "key", key, 2, "[M, D]")
    require_floating(op, query=query, key=key)
    require_device(op, query.device, key=key)
    if query.shape[1] != key.shape[1] or query.numel() == 0:
        raise ValueError(f"{op}: query {list(query.shape)} and key {list(key.shape)} must be {rows} and [M, D]")
    if pairs and query.shape[0] % 2:
        raise ValueError(f"{op}: query must be two views of each image, not {query.shape[0]} rows")
    if not temperature > 0:
        raise ValueError(f"{op}: temperature must be above 0, not {temperature}")
    if first_row < 0 or first_row + query.shape[0] > key.shape[0]:
        raise ValueError(f"{op}: first_row {first_row} + {query.shape[0]} queries leaves the {key.shape[0]} keys")
