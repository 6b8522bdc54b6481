"""trunk: from uint8 images and a plan to the normalised tokens of a ViT, and back to every gradient."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.implementations import resolve_implementations, use_implementations
from misplace.engine.models import MODEL_SIZES, VisionTransformer, use_low_precision
from misplace.kernels import TokenPlan, token_plan
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, size

from ..peers.timm_trunk import FORMS, TimmTrunk, normalised, with_form
from ..registry import Case, Check, Thunk
from ..roofline import BLOCK_BYTES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHECKED = 2  # images of the gate


class Shape(NamedTuple):
    """A backbone on B images of side x side pixels in patches of p x p, a share of the patches dropped."""

    model: str
    batch: int
    side: int
    patch_size: int
    drop_rate: float

    @property
    def num_patches(self) -> int:
        return (self.side // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        return 1 + int(self.num_patches * (1 - self.drop_rate) + 1e-6)

    def __str__(self) -> str:
        return f"{self.model} B={self.batch} N={self.num_tokens} {self.side}x{self.side}x3 p={self.patch_size}"


CPU = [
    Shape("small", 32, 224, 16, 0.75),
    Shape("small", 16, 224, 16, 0.5),
    Shape("small", 8, 224, 16, 0.0),
    Shape("base", 8, 224, 16, 0.75),
]
CUDA = [*(shape._replace(batch=1024) for shape in CPU), CPU[0]]  # the last is bound by launches
TINY = [Shape("nano", 4, 24, 6, 0.5)]


class Inputs(NamedTuple):
    images: Tensor  # uint8 [B, H, W, 3]
    plan: TokenPlan
    dout: Tensor  # fp32 [B, N, D]
    shape: Shape
    mode: str


def _inputs(shape: Shape, mode: str, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.batch, shape.side, shape.side, 3)
    images = torch.randint(256, sizes, generator=generator, dtype=torch.uint8).to(device)
    dout = torch.randn(shape.batch, shape.num_tokens, MODEL_SIZES[shape.model].width, generator=generator).to(device)
    plan = token_plan(
        torch.arange(shape.batch, device=device),
        num_patches=shape.num_patches,
        drop_rate=shape.drop_rate,
        wrong_rate=0.2,
        seed=0,
        epoch=0,
        view=0,
    )
    return Inputs(images, plan, dout, shape, mode)


def encoder(shape: Shape, impl: str, dtype: torch.dtype, device: torch.device) -> VisionTransformer:
    """The trunk at its initial weights, a pure function of the shape."""
    width, depth, num_heads = MODEL_SIZES[shape.model]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = VisionTransformer(
            image_size=shape.side,
            patch_size=shape.patch_size,
            channels=3,
            width=width,
            depth=depth,
            num_heads=num_heads,
            mean=MEAN,
            std=STD,
        )
    use_implementations(made, resolve_implementations(device, "" if impl == "auto" else impl))
    use_low_precision(made.to(device), dtype)
    made.compute_dtype = dtype
    return made


def _run(call, inputs: Inputs, parameters: list[Tensor]) -> list[Tensor]:
    """The tokens, and in the backward's mode the gradient of every parameter."""
    if inputs.mode == "forward":
        with torch.no_grad():
            return [call()]
    out = call()
    return [out.detach(), *torch.autograd.grad(out, parameters, inputs.dout.to(out.dtype))]


def _ours(inputs: Inputs, impl: str, dtype: torch.dtype = torch.bfloat16) -> Thunk:
    trunk = encoder(inputs.shape, impl, dtype, inputs.images.device)
    parameters = [p for p in trunk.parameters() if p.requires_grad]
    return partial(_run, lambda: trunk.norm(trunk(inputs.images, inputs.plan)), inputs, parameters)


def _timm(inputs: Inputs, form: str) -> Thunk:
    shape, device = inputs.shape, inputs.images.device
    trunk = TimmTrunk(
        shape.model,
        image_size=shape.side,
        patch_size=shape.patch_size,
        num_heads=None,
        attention=FORMS[form][0],
    ).to(device)
    parameters = [p for p in trunk.parameters() if p.requires_grad]
    arguments = normalised(inputs.images, MEAN, STD), inputs.plan.src.long(), inputs.plan.pos.long()
    call = with_form(trunk, form, device)
    return partial(_run, lambda: call(*arguments), inputs, parameters)


def _check(inputs: Inputs, impl: str) -> Check:
    """Root mean square error of the tokens, or of all gradients, in bf16 against the reference in fp32."""
    few = inputs._replace(
        images=inputs.images[:CHECKED],
        plan=TokenPlan(*(part[:CHECKED] for part in inputs.plan)),
        dout=inputs.dout[:CHECKED],
    )
    start = 0 if inputs.mode == "forward" else 1

    def results(which: str, dtype: torch.dtype) -> Tensor:
        return torch.cat([part.flatten().double() for part in _ours(few, which, dtype)()[start:]])

    exact = results("reference", torch.float32)
    ours, eager = (size(results(which, torch.bfloat16) - exact).root_mean_square for which in (impl, "reference"))
    return Check(ours, GRADIENT_FACTOR * eager)


def _case(shape: Shape, mode: str) -> Case:
    width, depth, _ = MODEL_SIZES[shape.model]
    tokens = shape.batch * shape.num_tokens * depth
    per_token = 24 * width**2 + 4 * shape.num_tokens * width
    return Case(
        op="trunk",
        mode=mode,
        shape=str(shape),
        dtype="bfloat16",
        make_inputs=partial(_inputs, shape, mode),
        ours=_ours,
        peers={"eager": partial(_timm, form="eager-sdpa"), **{form: partial(_timm, form=form) for form in FORMS}},
        check=_check,
        bytes_moved=tokens * width * BLOCK_BYTES[mode],
        operations=tokens * per_token * (3 if mode == "forward+backward" else 1),
    )


def cases(*, tiny: bool) -> list[Case]:
    shapes = TINY if tiny else CUDA if torch.cuda.is_available() else CPU
    return [_case(shape, mode) for shape in shapes for mode in ("forward", "forward+backward")]
