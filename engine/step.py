"""One training step: plans, one student pass, both losses, backward, the update. Reads like the method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import TokenPlan, dense_plan

from .config import Config
from .data import Batch
from .distributed import average_gradients
from .frameworks import Student
from .method import Method
from .models import VisionTransformer
from .optim import AdamWEMA, StepNumbers, cosine_with_warmup
from .pretexts import Detection


class Losses(NamedTuple):
    """total: scalar with a graph; framework: its part of it; terms: each named term; detection: of both views."""

    total: Tensor
    framework: Tensor
    terms: dict[str, Tensor]
    plan: TokenPlan  # of both views, stacked: [V * B, K]
    detection: Detection | None


@dataclass
class StepResult:
    """What a step tells the metrics. Scalars are host floats."""

    loss: float
    framework_loss: float
    terms: dict[str, float]
    grad_norm: float
    lr: float
    detection: Detection | None


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite; nothing has been updated."""


def stack_plans(plans: list[TokenPlan]) -> TokenPlan:
    """Plans of several views as one plan of their stacked batch."""
    return TokenPlan(*(torch.cat(parts) for parts in zip(*plans)))


def view_plans(method: Method, batch: Batch, seed: int) -> list[TokenPlan]:
    """The pretext's plan of each view; local crops have none."""
    patches = method.encoder.num_patches
    return [
        method.pretext.plan(batch.index, patches, seed=seed, epoch=batch.epoch, view=view)
        for view in range(method.framework.num_views)
    ]


def student_plan(method: Method, batch: Batch, seed: int) -> TokenPlan:
    """The plans of all views of a batch, stacked: [V * B, K]."""
    return stack_plans(view_plans(method, batch, seed))


def compute_losses(method: Method, batch: Batch, seed: int) -> Losses:
    """The losses of a batch under its own plan and its epoch's schedule."""
    schedule = method.framework.schedule(batch.epoch)
    return losses_under(method, batch.views, student_plan(method, batch, seed), schedule)


def losses_under(
    method: Method, views: tuple[Tensor, ...], plan: TokenPlan, schedule: Mapping[str, float | Tensor]
) -> Losses:
    """The class token that enters the framework's loss saw the sparse, misplaced input: one pass, both losses. [S]

    views: uint8 [B, S, S, C] each, local crops behind the others; plan: of all but those, stacked; schedule: as the
    framework's own.
    """
    views, local = views[: method.framework.num_views], views[method.framework.num_views :]
    student = see(method.encoder, views, plan, local)
    terms = method.framework.losses(student, views, schedule)
    total = framework = sum(terms.values())
    pretext_terms, detection = method.pretext.losses(method.encoder, student.tokens, plan)
    if pretext_terms:
        total = total + method.pretext.weight * sum(pretext_terms.values())
    return Losses(total, framework, {**terms, **pretext_terms}, plan, detection)


def see(
    encoder: VisionTransformer, views: tuple[Tensor, ...], plan: TokenPlan, local: tuple[Tensor, ...] = ()
) -> Student:
    """The student's one pass: views under their plan, local crops whole, packed with them. [O]"""
    if not local:
        return Student(encoder, encoder(torch.cat(views), plan), plan, len(views))
    crops = torch.cat(local)
    patches = (crops.shape[1] // encoder.patch_size) ** 2
    tokens, local_tokens = encoder.forward_packed(
        [(torch.cat(views), plan), (crops, dense_plan(len(crops), patches, crops.device))]
    )
    return Student(encoder, tokens, plan, len(views), local_tokens, len(local))


def step_numbers(
    method: Method, optimizer: AdamWEMA, config: Config, epoch: int, progress: float, following: float
) -> StepNumbers:
    """The numbers of the optimiser's next update; counts it."""
    updates, late_updates = optimizer.count_step(holds_late=method.framework.holds_late(epoch))
    peak = config.optim.base_lr * config.data.batch_size / 256
    return StepNumbers(
        step=updates,
        late_step=late_updates,
        lr=cosine_with_warmup(progress, peak=peak, warmup=config.optim.warmup, final=config.optim.final_lr),
        momentum=method.framework.momentum(progress, following),
        decay_scale=config.optim.decay_scale(progress),
    )


def training_step(
    method: Method,
    optimizer: AdamWEMA,
    batch: Batch,
    config: Config,
    *,
    progress: float,
    next_progress: Callable[[], float],
) -> StepResult:
    """One update in place.

    progress: share of the run at this step's start; next_progress: asked after backward, the share at the next
    step's start, since a teacher may be averaged just before the next keys. Raises NonFiniteError before anything is
    updated.
    """
    losses = compute_losses(method, batch, config.run.seed)
    losses.total.backward()
    average_gradients(optimizer.parameters)
    loss, grad_norm = losses.total.item(), optimizer.grad_norm().item()
    terms = {name: term.item() for name, term in losses.terms.items()}
    refuse_non_finite(loss, grad_norm, terms)
    numbers = step_numbers(method, optimizer, config, batch.epoch, progress, next_progress())
    optimizer.step(numbers, grad_norm=grad_norm)
    method.framework.finish_step()
    return StepResult(loss, losses.framework.item(), terms, grad_norm, numbers.lr, losses.detection)


def refuse_non_finite(loss: float, grad_norm: float, terms: dict[str, float]) -> None:
    """NonFiniteError, with the terms in its words."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not abs(value) < float("inf"):
            listed = ", ".join(f"{term}={number:.6g}" for term, number in terms.items())
            raise NonFiniteError(f"{name} is {value} ({listed})")
