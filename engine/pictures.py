"""Pictures for the report: a few samples, their plans, and what the head thought of each token."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from .config import Config
from .data import Source, make_loader
from .method import Method
from .step import see, student_plan

NUM_PICTURES = 8


@torch.no_grad()
def token_pictures(method: Method, source: Source, config: Config) -> dict[str, np.ndarray]:
    """Arrays of report/: views [n, V, S, S, C], src, pos, wrong [n, V, K], patch_size.

    probability [n, V, K] where the pretext has a head; what the framework shows, by name, as views.
    """
    count = min(NUM_PICTURES, len(source))
    loader = make_loader(
        source,
        batch_size=count,
        num_views=method.framework.num_views,
        image_size=config.model.image_size,
        augment=dataclasses.replace(config.data.augment, local_views=0),
        seed=config.run.seed,
        start_step=0,
        workers=0,
        prefetch=1,
    )
    batch = next(iter(loader))
    device = method.encoder.cls_token.device
    batch = batch.to(device)
    plan = student_plan(method, batch, config.run.seed)
    student = see(method.encoder, batch.views, plan)
    _, detection = method.pretext.losses(method.encoder, student.tokens, plan)

    def per_image(stacked: torch.Tensor) -> np.ndarray:
        return torch.stack(stacked.cpu().chunk(len(batch.views)), dim=1).numpy()

    arrays = {
        "views": torch.stack(batch.views, dim=1).cpu().numpy(),
        "src": per_image(plan.src),
        "pos": per_image(plan.pos),
        "wrong": per_image(plan.wrong),
        "patch_size": np.array(config.model.patch_size),
    }
    arrays |= {name: per_image(made) for name, made in method.framework.pictures(student, batch.views).items()}
    if detection is not None:
        arrays["probability"] = per_image(detection.logits.float().sigmoid())
    return arrays


def write_pictures(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One .npz without pickled objects."""
    np.savez_compressed(path, **arrays)
