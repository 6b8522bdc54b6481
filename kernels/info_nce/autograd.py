"""What the fused implementations share: the gradients are computed with the loss and scaled in backward."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Results(NamedTuple):
    """Gradients of the loss itself, empty where they were not asked for.

    Without a key the queries are their own keys, and d_query is the sum of both gradients.
    """

    loss: Tensor  # fp32 scalar
    d_query: Tensor  # [N, D], gradient_dtype
    d_key: Tensor  # [M, D], gradient_dtype


def define(library: torch.library.Library, name: str, last: str = "") -> None:
    """Declares misplace::name; last: what an implementation asks for besides."""
    schema = (
        f"{name}(Tensor query, Tensor? key, float temperature, SymInt first_row, bool pairs, bool query_gradient, "
        f"bool key_gradient{last}) -> (Tensor loss, Tensor d_query, Tensor d_key)"
    )
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"misplace::{name}", _fake, lib=library)


def gradient_dtype(rows: Tensor) -> torch.dtype:
    """That of the rows; fp16 would lose the gradient of a mean before a loss scale can reach it."""
    return torch.float32 if rows.dtype == torch.float16 else rows.dtype


def empty_results(query: Tensor, key: Tensor | None, query_gradient: bool, key_gradient: bool) -> Results:
    """Results without values, as a kernel fills them and as torch.compile traces them."""
    dtype = gradient_dtype(query)
    return Results(
        query.new_empty((), dtype=torch.float32),
        query.new_empty(query.shape if query_gradient else (0,), dtype=dtype),
        query.new_empty((0,) if key is None or not key_gradient else key.shape, dtype=dtype),
    )


def _fake(query, key, temperature, first_row, pairs, query_gradient, key_gradient, *_):
    return tuple(empty_results(query, key, query_gradient, key_gradient))


def differentiable(
    run,  # the registered op
    query: Tensor,
    key: Tensor,
    temperature: float,
    first_row: int,
    pairs: bool,
    *last,
) -> Tensor:
    """The loss; no gradient is computed that nothing requires. One tensor given twice gets the sum of both."""
    key = None if key is query else key
    settings = (temperature, first_row, pairs)
    required = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (query, key)]
    if any(required):
        return _WithGradients.apply(run, query, key, settings, required, last)
    return run(query, key, *settings, False, False, *last)[0]


class _WithGradients(Function):
    @staticmethod
    def forward(ctx, run, query, key, settings, required, last):
        loss, d_query, d_key = run(query, key, *settings, *required, *last)
        ctx.dtype = query.dtype
        ctx.save_for_backward(d_query, d_key)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        _, query_wanted, key_wanted, *_ = ctx.needs_input_grad
        d_query, d_key = ctx.saved_tensors
        d_query = _scaled(d_query, d_loss, ctx.dtype) if query_wanted else None
        d_key = _scaled(d_key, d_loss, ctx.dtype) if key_wanted else None
        return None, d_query, d_key, None, None, None


def _scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale of 1 costs no pass, where it can be read without stopping a GPU or torch.compile."""
    if not torch.compiler.is_compiling() and scale.device.type == "cpu":
        factor = scale.item()
        if factor != 1:
            gradient = gradient * factor
    else:
        gradient = gradient * scale
    return gradient if gradient.dtype == dtype else gradient.to(dtype)
