"""The registered operators of attention: what the native and the Triton kernels share, so that each is two kernels.

define(library, name, option, statistics) declares `name` (q, k, v), `name`_packed (qkv) and the _backward of both,
their fake kernels and the autograd between them. Saved for the backward: the inputs, and `statistics`, a few fp32
numbers a query and head, from which the probabilities are made again. With cu_seqlens the tensors have no dimension
of images: q [T, H, d], qkv [T, 3 D].
"""

from collections.abc import Callable

import torch
from torch import Tensor

# shape of q, whether lengths are mixed -> shape of the statistics that a backward needs
StatisticsShape = Callable[[torch.Size, bool], tuple[int, ...]]
TAGS = (torch.Tag.pt2_compliant_tag,)


def define(library: torch.library.Library, name: str, option: str, statistics: StatisticsShape) -> None:
    """option: the one argument that only these kernels have, as a schema writes it."""
    forward, backward = (
        f"float scale, bool for_backward, {option}, Tensor? cu_seqlens=None",
        f"float scale, {option}, Tensor? cu_seqlens=None",
    )
    library.define(f"{name}(Tensor q, Tensor k, Tensor v, {forward}) -> (Tensor out, Tensor statistics)", tags=TAGS)
    library.define(
        f"{name}_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor statistics, {backward}) "
        "-> (Tensor dq, Tensor dk, Tensor dv)",
        tags=TAGS,
    )
    library.define(f"{name}_packed(Tensor qkv, int num_heads, {forward}) -> (Tensor out, Tensor statistics)", tags=TAGS)
    library.define(
        f"{name}_packed_backward(Tensor dout, Tensor qkv, Tensor statistics, int num_heads, {backward}) -> Tensor",
        tags=TAGS,
    )
    _register_fakes(library, name, statistics)
    _register_autograd(library, name)


def _register_fakes(library: torch.library.Library, name: str, statistics: StatisticsShape) -> None:
    def kept(like: Tensor, shape, for_backward: bool, cu_seqlens: Tensor | None) -> Tensor:
        of_backward = statistics(shape, cu_seqlens is not None)
        return like.new_empty(of_backward if for_backward else (0,), dtype=torch.float32)

    def separate(q, k, v, scale, for_backward, option, cu_seqlens=None):
        return q.new_empty(q.shape), kept(q, q.shape, for_backward, cu_seqlens)

    def separate_backward(dout, q, k, v, statistics, scale, option, cu_seqlens=None):
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def packed(qkv, num_heads, scale, for_backward, option, cu_seqlens=None):
        width = qkv.shape[-1] // 3
        of_q = (*qkv.shape[:-1], num_heads, width // num_heads)
        return qkv.new_empty((*qkv.shape[:-1], width)), kept(qkv, of_q, for_backward, cu_seqlens)

    def packed_backward(dout, qkv, statistics, num_heads, scale, option, cu_seqlens=None):
        return qkv.new_empty(qkv.shape)

    for suffix, fake in (
        ("", separate), ("_backward", separate_backward), ("_packed", packed), ("_packed_backward", packed_backward),
    ):  # fmt: skip
        torch.library.register_fake(f"misplace::{name}{suffix}", fake, lib=library)


def _register_autograd(library: torch.library.Library, name: str) -> None:
    def remember(ctx, inputs, output, num_tensors: int) -> None:
        *ctx.rest, for_backward, ctx.option, cu_seqlens = inputs[num_tensors:]
        if not for_backward:
            raise ValueError("attention: for_backward is False, and an input requires a gradient")
        ctx.save_for_backward(*inputs[:num_tensors], output[1], cu_seqlens)
        ctx.mark_non_differentiable(output[1])

    def backward(ctx, dout, _):
        *saved, cu_seqlens = ctx.saved_tensors
        run = getattr(torch.ops.misplace, f"{name}_backward")
        return *run(dout, *saved, *ctx.rest, ctx.option, cu_seqlens), None, None, None, None

    def packed_backward(ctx, dout, _):
        *saved, cu_seqlens = ctx.saved_tensors
        run = getattr(torch.ops.misplace, f"{name}_packed_backward")
        return run(dout, *saved, *ctx.rest, ctx.option, cu_seqlens), None, None, None, None, None

    for suffix, function, num_tensors in (("", backward, 3), ("_packed", packed_backward, 1)):

        def setup(ctx, inputs, output, num_tensors=num_tensors):
            remember(ctx, inputs, output, num_tensors)

        torch.library.register_autograd(f"misplace::{name}{suffix}", function, setup_context=setup, lib=library)


def separate(operator, q: Tensor, k: Tensor, v: Tensor, scale: float, option, cu_seqlens: Tensor | None) -> Tensor:
    """operator(q, k, v) -> out; keeps statistics only where somebody may ask for a gradient."""
    for_backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return operator(q, k, v, scale, for_backward, option, cu_seqlens)[0]


def packed(operator, qkv: Tensor, num_heads: int, scale: float, option, cu_seqlens: Tensor | None) -> Tensor:
    """operator(qkv) -> out, likewise."""
    for_backward = torch.is_grad_enabled() and qkv.requires_grad
    return operator(qkv, num_heads, scale, for_backward, option, cu_seqlens)[0]
