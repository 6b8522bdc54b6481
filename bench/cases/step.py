"""step: a whole training step of moco_v3_dilemma, from plans to update, on images that are in memory already."""

import copy
import dataclasses
from functools import partial

import torch
from torch import Tensor

from misplace.engine.captured_step import why_not_captured
from misplace.engine.config import Config
from misplace.engine.data import Batch
from misplace.engine.frameworks import FRAMEWORKS
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import Method, build_method, build_optimizer
from misplace.engine.models import MODEL_SIZES
from misplace.engine.recipes import recipe
from misplace.engine.step import compute_losses
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, size

from ..next_step import next_step
from ..peers.step import timm_step, torch_operators
from ..peers.timm_trunk import FORMS, normalised
from ..registry import Case, Check, Thunk
from ..roofline import BLOCK_BYTES

NUM_BATCHES = 2
# model, images, image size, patch size, drop rate
FULL = [("small", 16, 224, 16, 0.75), ("small", 16, 224, 16, 0.5), ("nano", 128, 32, 4, 0.75)]
TINY = [("nano", 8, 24, 6, 0.75)]


class RandomImages:
    """What building a method asks of a data source."""

    channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)


class Inputs:
    """A configuration, and batches of random views on the host."""

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device
        generator = torch.Generator().manual_seed(0)
        images = config.data.batch_size
        kinds = config.data.augment.view_kinds(FRAMEWORKS[type(config.framework)].num_views, config.model.image_size)
        shapes = [(images, kind.size, kind.size, RandomImages.channels) for kind in kinds]
        self.batches = [
            Batch(
                views=tuple(torch.randint(256, shape, generator=generator, dtype=torch.uint8) for shape in shapes),
                index=torch.arange(images) + images * i,
                epoch=0,
                failures=(),
            )
            for i in range(NUM_BATCHES)
        ]

    def method(self, impl: str, precision: str = "bf16") -> tuple[Method, Config, dict]:
        """The method at its initial weights, its configuration and its implementations."""
        run = dataclasses.replace(self.config.run, precision=precision, device=str(self.device))
        config = dataclasses.replace(self.config, run=run)
        overrides = {"auto": "", "torch": torch_operators(self.device)}.get(impl, impl)
        impls = resolve_implementations(self.device, overrides)
        return build_method(config, RandomImages, impls), config, impls


def _inputs(model: str, images: int, side: int, patch: int, drop: float, device: torch.device) -> Inputs:
    base = recipe("moco_v3_dilemma")(model)
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, image_size=side, patch_size=patch),
        data=dataclasses.replace(base.data, batch_size=images),
        pretext=dataclasses.replace(base.pretext, drop_rate=drop),
    )
    return Inputs(config, device)


def _ours(inputs: Inputs, impl: str) -> Thunk:
    method, config, impls = inputs.method(impl)
    optimizer = build_optimizer(method, config, impls)
    captured = why_not_captured(impls, inputs.device) is None and impl != "torch"
    train = next_step(method, optimizer, config, inputs.batches, captured=captured)

    def step() -> list[Tensor]:
        result = train()
        return [] if result is None else [torch.tensor(result.loss)]

    return step


def _timm(inputs: Inputs, form: str) -> Thunk:
    """Pixels come normalised, at no cost to the peer."""
    config, mean, std = inputs.config, RandomImages.mean, RandomImages.std
    batches = [normalised(torch.cat(batch.views).to(inputs.device), mean, std) for batch in inputs.batches]
    lr = config.optim.base_lr * config.data.batch_size / 256
    return timm_step(config, form, batches, lr, inputs.device)


def _dense(inputs: Inputs) -> Thunk:
    """The same engine and framework without the pretext: whole images, nothing misplaced."""
    plain = recipe("moco_v3")(inputs.config.model.name)
    config = dataclasses.replace(inputs.config, recipe=plain.recipe, pretext=plain.pretext)
    dense = copy.copy(inputs)
    dense.config = config
    return _ours(dense, "auto")


def _gradients(inputs: Inputs, impl: str, precision: str) -> Tensor:
    """Of every trained parameter at the initial weights, as one fp64 vector."""
    method, config, _ = inputs.method(impl, precision)
    compute_losses(method, inputs.batches[0].to(inputs.device), config.run.seed).total.backward()
    return torch.cat([p.grad.flatten().double() for p in method.parameters() if p.requires_grad])


def _check(inputs: Inputs, impl: str) -> Check:
    """Root mean square error of all gradients in bf16 against the reference in fp32."""
    exact = _gradients(inputs, "reference", "fp32")
    ours, eager = (size(_gradients(inputs, each, "bf16") - exact).root_mean_square for each in (impl, "reference"))
    return Check(ours, GRADIENT_FACTOR * eager)


def _work(model: str, images: int, side: int, patch: int, drop: float) -> dict[str, int]:
    """The blocks' least traffic and matrix work: a sparse student there and back, a dense teacher forward."""
    width, depth, _ = MODEL_SIZES[model]
    patches = (side // patch) ** 2
    student, teacher = 1 + int(patches * (1 - drop)), 1 + patches

    def operations(tokens: int) -> int:
        return tokens * (24 * width**2 + 4 * tokens * width)

    per_layer = 2 * images * depth  # two views of every image
    there_and_back, forward = BLOCK_BYTES["forward+backward"], BLOCK_BYTES["forward"]
    return {
        "bytes_moved": per_layer * width * (there_and_back * student + forward * teacher),
        "operations": per_layer * (3 * operations(student) + operations(teacher)),
    }


def cases(*, tiny: bool) -> list[Case]:
    return [
        Case(
            op="step",
            mode="step",
            shape=f"{model} B={images} {side}x{side}x3 p={patch} drop={drop:g}",
            dtype="bfloat16",
            make_inputs=partial(_inputs, model, images, side, patch, drop),
            ours=_ours,
            peers={
                "eager": partial(_ours, impl="torch"),
                "dense": _dense,
                **{form: partial(_timm, form=form) for form in FORMS},
            },
            check=_check,
            **_work(model, images, side, patch, drop),
        )
        for model, images, side, patch, drop in (TINY if tiny else FULL)
    ]
