"""patch_mse: least traffic is a read of the predictions and their pixels, and a write of the gradient: 5 bytes a number
in bf16."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import dropped_patches, patch_mse, token_plan

from .. import peers
from ..gate import against_fp64
from ..peers.patch_mse import eager_patch_mse
from ..registry import Case, Check, Thunk

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DROP_RATE = 0.75
# images, their side, patch, channels
FULL = [(64, 224, 16, 3), (256, 224, 16, 3), (64, 28, 4, 1), (256, 28, 4, 1)]
TINY = [(2, 16, 4, 3)]
DTYPES = ["bfloat16", "float32"]


class Inputs(NamedTuple):
    prediction: Tensor  # [B, M, p * p * C]; with a gradient to find in the backward's cases
    images: Tensor  # uint8 [B, H, W, C]
    index: Tensor  # int32 [B, M]
    patch_size: int
    normalised: Tensor  # the peer's: fp32 [B, C, H, W]

    @property
    def options(self) -> dict:
        channels = self.images.shape[3]
        return dict(patch_size=self.patch_size, mean=MEAN[:channels], std=STD[:channels])


def _inputs(shape, dtype: str, with_backward: bool, device: torch.device) -> Inputs:
    batch, side, patch_size, channels = shape
    generator = torch.Generator().manual_seed(0)
    num_patches = (side // patch_size) ** 2
    settings = dict(drop_rate=DROP_RATE, wrong_rate=0.0, seed=1, epoch=0, view=0)
    plan = token_plan(torch.arange(batch, device=device), num_patches=num_patches, **settings)
    index = dropped_patches(plan.src, num_patches)
    images = torch.randint(256, (batch, side, side, channels), generator=generator, dtype=torch.uint8).to(device)
    prediction = torch.randn(*index.shape, patch_size**2 * channels, generator=generator)
    prediction = prediction.to(device, getattr(torch, dtype)).requires_grad_(with_backward)
    return Inputs(prediction, images, index, patch_size, _normalised(images).contiguous())


def _normalised(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    mean, std = (torch.tensor(each[: images.shape[3]], dtype=dtype, device=images.device) for each in (MEAN, STD))
    return ((images.to(dtype) / 255 - mean) / std).permute(0, 3, 1, 2)


def _thunk(loss, prediction: Tensor, *rest: Tensor) -> Thunk:
    def forward_and_backward():
        value = loss(prediction, *rest)
        return value.detach(), *torch.autograd.grad(value, prediction)

    return forward_and_backward if prediction.requires_grad else lambda: (loss(prediction, *rest),)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    loss = partial(patch_mse, **inputs.options, impl=impl)
    return _thunk(loss, inputs.prediction, inputs.images, inputs.index)


def _peer(inputs: Inputs, *, compiled: bool) -> Thunk:
    loss = peers.compiled(eager_patch_mse, inputs.images.device) if compiled else eager_patch_mse
    loss = partial(loss, patch_size=inputs.patch_size)
    return _thunk(loss, inputs.prediction, inputs.normalised, inputs.index.long())


def _check(inputs: Inputs, impl: str) -> Check:
    few = 8  # images
    tensors = {
        "prediction": inputs.prediction.detach()[:few],
        "images": inputs.images[:few],
        "index": inputs.index[:few],
    }

    def eager(prediction: Tensor, images: Tensor, index: Tensor) -> Tensor:
        return eager_patch_mse(prediction, _normalised(images), index.long(), patch_size=inputs.patch_size)

    op, oracle = (partial(patch_mse, **inputs.options, impl=each) for each in (impl, "reference"))
    return against_fp64(op, eager, oracle, tensors, ["prediction"] if inputs.prediction.requires_grad else [])


def _case(shape, dtype: str, with_backward: bool) -> Case:
    batch, side, patch_size, channels = shape
    num_patches = (side // patch_size) ** 2
    numbers = batch * (num_patches - int(num_patches * (1 - DROP_RATE) + 1e-6)) * patch_size**2 * channels
    return Case(
        op="patch_mse",
        mode="forward+backward" if with_backward else "forward",
        shape=f"B={batch} {side}x{side}x{channels} p={patch_size} drop={DROP_RATE}",
        dtype=dtype,
        make_inputs=partial(_inputs, shape, dtype, with_backward),
        ours=_ours,
        peers={"eager": partial(_peer, compiled=False), "compile": partial(_peer, compiled=True)},
        check=_check,
        bytes_moved=numbers * (1 + (2 if with_backward else 1) * getattr(torch, dtype).itemsize),
    )


def cases(*, tiny: bool) -> list[Case]:
    return [
        _case(shape, dtype, with_backward)
        for shape in (TINY if tiny else FULL)
        for dtype in DTYPES
        for with_backward in (False, True)
    ]
