"""multi_crop: DINO's student on 2 global and 8 local crops of each image, forward and backward, in one packed pass.

The peer `per-resolution` is ours too, a pass for the global crops and one for the local ones.
"""

import itertools
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.implementations import resolve_implementations, use_implementations
from misplace.engine.models import MODEL_SIZES, VisionTransformer, use_low_precision
from misplace.kernels import TokenPlan, dense_plan, token_plan
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, size

from ..peers.timm_crops import TimmCrops
from ..peers.timm_trunk import FORMS, TimmTrunk, normalised, with_form
from ..registry import Case, Check, Thunk
from ..roofline import BLOCK_BYTES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GLOBAL, LOCAL = 2, 8  # crops of an image


class Shape(NamedTuple):
    """A backbone on the crops of so many images, patches of p x p; drop_rate: of the global crops."""

    model: str
    images: int
    side: int
    local_side: int
    patch_size: int
    drop_rate: float

    @property
    def lengths(self) -> dict[int, int]:
        """Tokens of a sequence -> sequences."""
        kept = 1 + int((self.side // self.patch_size) ** 2 * (1 - self.drop_rate) + 1e-6)
        return {kept: GLOBAL * self.images, 1 + (self.local_side // self.patch_size) ** 2: LOCAL * self.images}

    def __str__(self) -> str:
        sizes = f"{GLOBAL}x{self.side} {LOCAL}x{self.local_side}"
        return f"{self.model} images={self.images} {sizes} p={self.patch_size} drop={self.drop_rate:g}"


CPU = [Shape("small", images, 224, 96, 16, drop) for drop in (0.75, 0.0) for images in (1, 4)]
CUDA = [Shape("small", images, 224, 96, 16, drop) for drop in (0.75, 0.0) for images in (4, 128)]
TINY = [Shape("nano", 2, 24, 12, 6, 0.5)]


class Inputs(NamedTuple):
    views: Tensor  # uint8 [2 B, S, S, 3]
    plan: TokenPlan
    crops: Tensor  # uint8 [8 B, s, s, 3]
    douts: tuple[Tensor, Tensor]
    shape: Shape


def _inputs(shape: Shape, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    sizes = ((GLOBAL * shape.images, shape.side), (LOCAL * shape.images, shape.local_side))
    views, crops = (
        torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8).to(device)
        for count, side in sizes
    )
    width = MODEL_SIZES[shape.model].width
    douts = tuple(torch.randn(count, n, width, generator=generator).to(device) for n, count in shape.lengths.items())
    plan = token_plan(
        torch.arange(len(views), device=device),
        num_patches=(shape.side // shape.patch_size) ** 2,
        drop_rate=shape.drop_rate,
        wrong_rate=0.2,
        seed=0,
        epoch=0,
        view=0,
    )
    return Inputs(views, plan, crops, douts, shape)


def _encoder(shape: Shape, impl: str, dtype: torch.dtype, device: torch.device) -> VisionTransformer:
    width, depth, num_heads = MODEL_SIZES[shape.model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VisionTransformer(
            image_size=shape.side, patch_size=shape.patch_size, channels=3, width=width, depth=depth,
            num_heads=num_heads, mean=MEAN, std=STD, init="trunc_normal",
            learned_position=True, freeze_patch_projection=False,
        )  # fmt: skip
    use_implementations(made, resolve_implementations(device, "" if impl == "auto" else impl))
    use_low_precision(made.to(device), dtype)
    made.compute_dtype = dtype
    return made


def _run(call, inputs: Inputs, parameters: list[Tensor]) -> list[Tensor]:
    """Both kinds of tokens, and the gradient of every parameter."""
    out = call()
    douts = [dout.to(tokens.dtype) for tokens, dout in zip(out, inputs.douts)]
    return [*(tokens.detach() for tokens in out), *torch.autograd.grad(list(out), parameters, douts)]


def _ours(inputs: Inputs, impl: str, dtype: torch.dtype = torch.bfloat16, *, packed: bool = True) -> Thunk:
    device = inputs.views.device
    trunk = _encoder(inputs.shape, impl, dtype, device)
    local = (inputs.shape.local_side // inputs.shape.patch_size) ** 2
    parts = [(inputs.views, inputs.plan), (inputs.crops, dense_plan(len(inputs.crops), local, device))]

    def tokens() -> list[Tensor]:
        found = trunk.forward_packed(parts) if packed else [trunk(*part) for part in parts]
        return [trunk.norm(part) for part in found]

    return partial(_run, tokens, inputs, [p for p in trunk.parameters() if p.requires_grad])


def _timm(inputs: Inputs, form: str) -> Thunk:
    shape, device = inputs.shape, inputs.views.device
    sizes = {"image_size": shape.side, "patch_size": shape.patch_size}
    crops = TimmCrops(TimmTrunk(shape.model, **sizes, num_heads=None, attention=FORMS[form][0])).to(device)
    pixels, local = (normalised(images, MEAN, STD) for images in (inputs.views, inputs.crops))
    arguments = pixels, inputs.plan.src.long(), inputs.plan.pos.long(), local
    call = with_form(crops, form, device)
    return partial(_run, lambda: call(*arguments), inputs, [p for p in crops.parameters() if p.requires_grad])


def _check(inputs: Inputs, impl: str) -> Check:
    """Root mean square error of all gradients in bf16 against the reference in fp32."""

    def gradients(which: str, dtype: torch.dtype) -> Tensor:
        return torch.cat([part.flatten().double() for part in _ours(inputs, which, dtype)()[2:]])

    exact = gradients("reference", torch.float32)
    ours, eager = (size(gradients(which, torch.bfloat16) - exact).root_mean_square for which in (impl, "reference"))
    return Check(ours, GRADIENT_FACTOR * eager)


def _case(shape: Shape) -> Case:
    width, depth, _ = MODEL_SIZES[shape.model]
    lengths = list(itertools.chain.from_iterable([tokens] * count for tokens, count in shape.lengths.items()))
    timm_peers = {form: partial(_timm, form=form) for form in FORMS}
    return Case(
        op="multi_crop",
        mode="forward+backward",
        shape=str(shape),
        dtype="bfloat16",
        make_inputs=partial(_inputs, shape),
        ours=_ours,
        peers={
            "eager": partial(_timm, form="eager-sdpa"),
            "per-resolution": partial(_ours, impl="auto", packed=False),
            **timm_peers,
        },
        check=_check,
        bytes_moved=sum(lengths) * depth * width * BLOCK_BYTES["forward+backward"],
        operations=3 * depth * sum(n * (24 * width**2 + 4 * n * width) for n in lengths),
    )


def cases(*, tiny: bool) -> list[Case]:
    return [_case(shape) for shape in (TINY if tiny else CUDA if torch.cuda.is_available() else CPU)]
