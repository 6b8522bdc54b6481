"""A step whose loss or gradient is not finite: nothing is updated, and what it saw is kept for replay."""

from pathlib import Path
from typing import NoReturn

import torch

from .capture import read_capture, write_capture
from .checkpoint import Checkpoint
from .config import Config, from_plain, to_plain
from .data import Batch, open_source
from .errors import UserError
from .implementations import resolve_implementations
from .method import build_method, build_optimizer
from .state import load_state, state_tensors
from .step import NonFiniteError, compute_losses, view_plans


def stop_with_capture(trainer, batch: Batch, error: NonFiniteError) -> NoReturn:
    """Saves batch, plans and state of the failed step, then ends the run with one line."""
    batch = batch.to(torch.device(trainer.config.run.device))
    path = write_capture(
        trainer.folder.capture,
        batch_views=batch.views,
        index=batch.index,
        epoch=batch.epoch,
        plans=view_plans(trainer.method, batch, trainer.config.run.seed),
        tensors=state_tensors(trainer.method, trainer.optimizer),
        state={"step": trainer.step, "config": to_plain(trainer.config)},
        reason=str(error),
    )
    raise UserError(
        f"step {trainer.step}: {error}; nothing was updated; replay it with `misplace doctor --replay {path}`, "
        "or try a lower --optim.base-lr or --optim.clip-norm"
    ) from None


def replay(path: Path) -> dict[str, float]:
    """Recomputes the losses and the gradient norm of a captured step from the captured state: named floats."""
    capture = read_capture(path)
    config = from_plain(Config, capture.state["config"])
    source = open_source(config.data.source)
    impls = resolve_implementations(torch.device(config.run.device), config.run.impl)
    method = build_method(config, source, impls)
    optimizer = build_optimizer(method, config, impls)
    load_state(Checkpoint(capture.state["step"], capture.tensors, {}), method, optimizer)
    batch = Batch(capture.batch_views, capture.index, capture.epoch, ())
    losses = compute_losses(method, batch.to(torch.device(config.run.device)), config.run.seed)
    losses.total.backward()
    values = {"loss": losses.total.item(), **{name: term.item() for name, term in losses.terms.items()}}
    return {**values, "grad_norm": optimizer.grad_norm().item()}
