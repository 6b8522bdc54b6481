"""One training step: plans, one student pass, both losses, backward, the update. Reads like the method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.kernels import TokenPlan

from .config import Config
from .data import Batch
from .method import Method
from .optim import AdamWEMA, cosine_with_warmup
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


def student_plan(method: Method, batch: Batch, seed: int) -> TokenPlan:
    """The plans of all views of a batch, stacked: [V * B, K]."""
    patches = method.encoder.num_patches
    return stack_plans(
        [
            method.pretext.plan(batch.index, patches, seed=seed, epoch=batch.epoch, view=view)
            for view in range(len(batch.views))
        ]
    )


def compute_losses(method: Method, batch: Batch, seed: int) -> Losses:
    """The losses of a batch under its own plan."""
    return losses_under(method, batch.views, student_plan(method, batch, seed))


def losses_under(method: Method, views: tuple[Tensor, ...], plan: TokenPlan) -> Losses:
    """The class token that enters the framework's loss saw the sparse, misplaced input: one pass, both losses. [S]

    views: uint8 [B, S, S, C] each; plan: of all views, stacked.
    """
    tokens = method.encoder(torch.cat(views), plan)
    class_tokens = method.encoder.norm(tokens[:, 0]).chunk(len(views))
    terms = method.framework.losses(class_tokens, views)
    total = framework = sum(terms.values())
    pretext_terms, detection = method.pretext.losses(method.encoder, tokens, plan)
    if pretext_terms:
        total = total + method.pretext.weight * sum(pretext_terms.values())
    return Losses(total, framework, {**terms, **pretext_terms}, plan, detection)


def learning_rate(config: Config, progress: float) -> float:
    """Of the step that starts at `progress` of the run."""
    peak = config.optim.base_lr * config.data.batch_size / 256
    return cosine_with_warmup(progress, peak=peak, warmup=config.optim.warmup)


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

    progress: share of the run at this step's start, for the learning rate; next_progress: asked after backward, the
    share at the next step's start, for the teacher's momentum, since MoCo v3 averages its teacher just before the
    keys. Raises NonFiniteError before anything is updated.
    """
    losses = compute_losses(method, batch, config.run.seed)
    losses.total.backward()
    loss, grad_norm = losses.total.item(), optimizer.grad_norm().item()
    terms = {name: term.item() for name, term in losses.terms.items()}
    refuse_non_finite(loss, grad_norm, terms)
    lr = learning_rate(config, progress)
    optimizer.step(lr=lr, grad_norm=grad_norm, momentum=method.framework.momentum(next_progress()))
    return StepResult(loss, losses.framework.item(), terms, grad_norm, lr, losses.detection)


def refuse_non_finite(loss: float, grad_norm: float, terms: dict[str, float]) -> None:
    """NonFiniteError, with the terms in its words."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not abs(value) < float("inf"):
            listed = ", ".join(f"{term}={number:.6g}" for term, number in terms.items())
            raise NonFiniteError(f"{name} is {value} ({listed})")
