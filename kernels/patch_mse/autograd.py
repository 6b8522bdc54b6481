"""What the implementations of patch_mse share: the gradient is computed with the loss and scaled in backward."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# compute(prediction, images, index, patch_size, mean, std, normalise, eps, ..., gradient) -> loss, d_prediction
Compute = Callable[..., tuple[Tensor, Tensor]]
# rescale_(d_prediction, scale): in place, nothing read or written where the scale is 1; a CPU needs none
Rescale = Callable[[Tensor, Tensor], None] | None


def define(library: torch.library.Library, name: str, last: str = "") -> None:
    """Declares misplace::name; last: what an implementation asks for besides."""
    library.define(
        f"{name}(Tensor prediction, Tensor images, Tensor index, SymInt patch_size, float[] mean, float[] std, "
        f"bool normalise, float eps{last}, bool gradient) -> (Tensor loss, Tensor d_prediction)",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    torch.library.register_fake(f"misplace::{name}", _fake, lib=library)


def _fake(prediction, images, index, patch_size, mean, std, normalise, eps, *last):
    return empty_results(prediction, last[-1])


def compute_dtype(prediction: Tensor) -> torch.dtype:
    return torch.promote_types(prediction.dtype, torch.float32)


def gradient_dtype(prediction: Tensor) -> torch.dtype:
    """That of the prediction; fp16 would lose the gradient of a mean before a loss scale can reach it."""
    return torch.float32 if prediction.dtype == torch.float16 else prediction.dtype


def empty_results(prediction: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """loss and d_prediction without values; the latter without elements where it is not wanted."""
    shape = prediction.shape if gradient else (0,)
    return (
        prediction.new_empty((), dtype=compute_dtype(prediction)),
        prediction.new_empty(shape, dtype=gradient_dtype(prediction)),
    )


def differentiable(compute: Compute, rescale_: Rescale, prediction: Tensor, *rest) -> Tensor:
    """The loss; where no gradient is required, none is computed."""
    if torch.is_grad_enabled() and prediction.requires_grad:
        return _PatchMse.apply(compute, rescale_, prediction, *rest)
    return compute(prediction, *rest, False)[0]


class _PatchMse(Function):
    @staticmethod
    def forward(ctx, compute, rescale_, prediction, *rest):
        loss, d_prediction = compute(prediction, *rest, True)
        ctx.rescale_, ctx.dtype, ctx.others = rescale_, prediction.dtype, len(rest)
        ctx.save_for_backward(d_prediction)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        (d_prediction,) = ctx.saved_tensors
        scaled = _scaled(d_prediction, d_loss, ctx.rescale_).to(ctx.dtype)
        return None, None, scaled, *(None,) * ctx.others


def _scaled(d_prediction: Tensor, scale: Tensor, rescale_: Rescale) -> Tensor:
    """A scale of 1, the usual one, costs no pass over the gradient outside torch.compile."""
    if not torch.compiler.is_compiling():
        if scale.device.type == "cpu":
            factor = scale.item()
            return d_prediction if factor == 1 else d_prediction * factor
        # reading a scale on a GPU would stop the host; scaling in place is for gradients that nobody needs again
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            rescale_(d_prediction, scale)
            return d_prediction
    return (d_prediction.to(scale.dtype) * scale).to(d_prediction.dtype)
