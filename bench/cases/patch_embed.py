"""patch_embed: uint8 images to tokens; held to the op's own derived tolerance before it is measured."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import patch_embed, token_plan
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, VALUE_FACTOR, size

from .. import peers
from ..peers.patch_embed import embed_all_then_gather
from ..registry import Case, Check, Thunk

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNED = ("weight", "bias", "pos_table", "class_token", "no_position")
BF16, FP32 = torch.bfloat16, torch.float32


class Shape(NamedTuple):
    """What is embedded: B images of side x side pixels in patches of p x p, D wide, a share of the patches dropped."""

    batch: int
    side: int
    patch_size: int
    channels: int
    dim: int
    drop_rate: float
    dtype: torch.dtype

    @property
    def num_patches(self) -> int:
        return (self.side // self.patch_size) ** 2

    @property
    def num_kept(self) -> int:
        return int(self.num_patches * (1 - self.drop_rate) + 1e-6)

    def __str__(self) -> str:
        return (
            f"B={self.batch} {self.side}x{self.side}x{self.channels} p={self.patch_size} D={self.dim} "
            f"drop={self.drop_rate}"
        )


CPU = [
    Shape(64, 224, 16, 3, 384, 0.75, BF16),
    Shape(64, 224, 16, 3, 384, 0.75, FP32),
    Shape(64, 224, 16, 3, 384, 0.5, BF16),
    Shape(256, 28, 4, 1, 192, 0.75, BF16),
    Shape(128, 64, 8, 3, 192, 0.75, BF16),
]
CUDA = [
    Shape(1024, 224, 16, 3, 384, 0.75, BF16),
    Shape(1024, 224, 16, 3, 768, 0.75, BF16),
    Shape(1024, 224, 16, 3, 384, 0.0, BF16),
    Shape(1024, 28, 4, 1, 192, 0.75, BF16),
]
TINY = [Shape(2, 16, 4, 3, 32, 0.5, FP32)]


class Inputs(NamedTuple):
    tensors: dict[str, Tensor]
    gradient: Tensor  # [B, 1 + K, D]
    shape: Shape
    backward: bool


def _inputs(shape: Shape, backward: bool, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, shape.dtype)

    index = torch.arange(shape.batch, device=device)
    plan = token_plan(
        index, num_patches=shape.num_patches, drop_rate=shape.drop_rate, wrong_rate=0.2, seed=1, epoch=0, view=0
    )
    sizes = (shape.batch, shape.side, shape.side, shape.channels)
    tensors = {
        "images": torch.randint(256, sizes, generator=generator, dtype=torch.uint8).to(device),
        "weight": normal(shape.dim, shape.channels, shape.patch_size, shape.patch_size) / shape.patch_size,
        "bias": normal(shape.dim),
        "pos_table": normal(1 + shape.num_patches, shape.dim),
        "class_token": normal(shape.dim),
        "no_position": normal(shape.dim),
        "src": plan.src,
        "pos": plan.pos,
    }
    for name in LEARNED if backward else ():
        tensors[name].requires_grad_()
    return Inputs(tensors, normal(shape.batch, 1 + shape.num_kept, shape.dim), shape, backward)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    shape = inputs.shape
    statistics = dict(mean=MEAN[: shape.channels], std=STD[: shape.channels])
    return _thunk(partial(patch_embed, patch_size=shape.patch_size, **statistics, impl=impl), inputs)


def _peer(inputs: Inputs, *, compiled: bool) -> Thunk:
    device, channels = inputs.gradient.device, inputs.shape.channels
    mean, std = (torch.tensor(numbers[:channels], device=device).view(-1, 1, 1) for numbers in (MEAN, STD))
    embed = peers.compiled(embed_all_then_gather, device) if compiled else embed_all_then_gather
    return _thunk(partial(embed, mean=mean, std=std), inputs)


def _thunk(embed, inputs: Inputs) -> Thunk:
    if not inputs.backward:
        return partial(_forward, embed, inputs)
    return partial(_forward_backward, embed, inputs)


@torch.no_grad()
def _forward(embed, inputs: Inputs):
    return (embed(**inputs.tensors),)


def _forward_backward(embed, inputs: Inputs):
    out = embed(**inputs.tensors)
    return out.detach(), *torch.autograd.grad(out, [inputs.tensors[name] for name in LEARNED], inputs.gradient)


def _check(inputs: Inputs, impl: str) -> Check:
    """The largest error as a share of what eager's own allows."""
    few = _first_images(inputs, 4)
    exact = _thunk_of_double(few)()
    plain, actual = _peer(few, compiled=False)(), _ours(few, impl)()
    shares = []
    for place, (result, near, oracle) in enumerate(zip(actual, plain, exact, strict=True)):
        eager, own = size(near.double() - oracle), size(result.double() - oracle)
        factor = GRADIENT_FACTOR if place else VALUE_FACTOR
        allowed = factor * eager.largest + torch.finfo(result.dtype).eps * size(oracle).largest
        shares.append(own.largest / allowed if own.largest else 0.0)
    return Check(error=max(shares), bound=1.0)


def _first_images(inputs: Inputs, count: int) -> Inputs:
    per_image = {name: inputs.tensors[name][:count] for name in ("images", "src", "pos")}
    return inputs._replace(tensors=inputs.tensors | per_image, gradient=inputs.gradient[:count])


def _thunk_of_double(inputs: Inputs) -> Thunk:
    wide = {name: t.detach().double() if t.is_floating_point() else t for name, t in inputs.tensors.items()}
    for name in LEARNED if inputs.backward else ():
        wide[name].requires_grad_()
    return _ours(inputs._replace(tensors=wide, gradient=inputs.gradient.double()), "reference")


def _bytes(shape: Shape, backward: bool) -> int:
    """Kept pixels, weight, table, plan and tokens once; backward: pixels, gradient and plan, and what it writes."""
    tokens, width = shape.batch * shape.num_kept, shape.dtype.itemsize
    pixels = tokens * shape.patch_size**2 * shape.channels
    weight = shape.dim * shape.channels * shape.patch_size**2 * width
    table = (4 + shape.num_patches) * shape.dim * width
    out = shape.batch * (1 + shape.num_kept) * shape.dim * width
    return (pixels + weight + table + out + 8 * tokens) * (2 if backward else 1)


def _operations(shape: Shape, backward: bool) -> int:
    product = 2 * shape.batch * shape.num_kept * shape.dim * shape.channels * shape.patch_size**2
    return product * (2 if backward else 1)


def cases(*, tiny: bool) -> list[Case]:
    full = CUDA if torch.cuda.is_available() else CPU
    return [
        Case(
            op="patch_embed",
            mode="forward+backward" if backward else "forward",
            shape=str(shape),
            dtype=str(shape.dtype).removeprefix("torch."),
            make_inputs=partial(_inputs, shape, backward),
            ours=_ours,
            peers={"eager": partial(_peer, compiled=False), "compile": partial(_peer, compiled=True)},
            check=_check,
            bytes_moved=_bytes(shape, backward),
            operations=_operations(shape, backward),
        )
        for shape in (TINY if tiny else full)
        for backward in (False, True)
    ]
