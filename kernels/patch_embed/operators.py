"""The registered operators of patch_embed: what the native and the Triton kernels share, so that each is two kernels.

define(library, name) declares `name` and `name`_backward, their fake kernels and the autograd between them. The
backward returns six tensors: of weight in dtype of the output, the other gradients in fp32 (fp64 for fp64), an empty
one where `wanted` is false.
"""

import torch
from torch import Tensor

FORWARD = (
    "(Tensor images, Tensor weight, Tensor bias, Tensor pos_table, Tensor class_token, Tensor? no_position, "
    "Tensor src, Tensor pos, float[] scale, float[] shift, bool channels_last) -> Tensor"
)
BACKWARD = (
    "(Tensor gradient, Tensor? images, Tensor? weight, Tensor src, Tensor pos, float[] scale, float[] shift, "
    "bool channels_last, SymInt patch_size, SymInt height, SymInt width, bool[6] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# of the forward's inputs, in the order of the backward's results; images come first in the one, last in the other
DIFFERENTIABLE = (1, 2, 3, 4, 5, 0)
WEIGHT, IMAGES = 0, 5


def normalisation(
    images: Tensor, channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[list[float], list[float]]:
    """scale and shift per channel, on the host: (pixel - mean) / std = pixel * scale + shift."""
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    if mean is None:
        return [unit] * channels, [0.0] * channels
    return [unit / s for s in std], [-m / s for m, s in zip(mean, std)]


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def empty_tokens(images, weight, bias, pos_table, class_token, no_position, src, pos, scale, shift, channels_last):
    """The output, not yet written: [B, 1 + K, D]."""
    return weight.new_empty((src.shape[0], 1 + src.shape[1], weight.shape[0]))


def empty_gradients(
    gradient, images, weight, src, pos, scale, shift, channels_last, patch_size, height, width, wanted
):  # fmt: skip
    """The six results, not yet written."""
    batch, _, dim = gradient.shape
    channels = len(scale)
    num_patches = (height // patch_size) * (width // patch_size)
    size = (batch, height, width, channels) if channels_last else (batch, channels, height, width)
    shapes = [(dim, channels, patch_size, patch_size), (dim,), (1 + num_patches, dim), (dim,), (dim,), size]
    wide = accumulation(gradient.dtype)
    return tuple(
        gradient.new_empty(shape if want else (0,), dtype=gradient.dtype if place == WEIGHT else wide)
        for place, (shape, want) in enumerate(zip(shapes, wanted))
    )


def define(library: torch.library.Library, name: str) -> None:
    """Declares misplace::name and its backward in `library`."""
    tags = (torch.Tag.pt2_compliant_tag,)
    library.define(name + FORWARD, tags=tags)
    library.define(f"{name}_backward{BACKWARD}", tags=tags)
    torch.library.register_fake(f"misplace::{name}", empty_tokens, lib=library)
    torch.library.register_fake(f"misplace::{name}_backward", empty_gradients, lib=library)

    def backward(ctx, gradient):
        return _backward(getattr(torch.ops.misplace, f"{name}_backward"), ctx, gradient)

    torch.library.register_autograd(f"misplace::{name}", backward, setup_context=_remember, lib=library)


def _remember(ctx, inputs, output) -> None:
    """Keeps the images only for a gradient of the weight, and the weight only for one of the images."""
    images, weight, _, _, _, _, src, pos, scale, shift, channels_last = inputs
    ctx.wanted = [ctx.needs_input_grad[place] for place in DIFFERENTIABLE]
    ctx.save_for_backward(images if ctx.wanted[WEIGHT] else None, weight if ctx.wanted[IMAGES] else None, src, pos)
    height, width = images.shape[1:3] if channels_last else images.shape[2:]
    ctx.rest = scale, shift, channels_last, weight.shape[-1], height, width
    ctx.dtypes = [None if inputs[place] is None else inputs[place].dtype for place in DIFFERENTIABLE]


def _backward(operator, ctx, gradient):
    results = operator(gradient, *ctx.saved_tensors, *ctx.rest, ctx.wanted)
    gradients = [None] * 11
    for place, result, dtype, want in zip(DIFFERENTIABLE, results, ctx.dtypes, ctx.wanted):
        if want:
            gradients[place] = result.to(dtype)
    return tuple(gradients)
