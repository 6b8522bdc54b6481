"""Small runs for the tests: a folder of 24-pixel images and configurations that take milliseconds a step."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from misplace.engine.config import Config
from misplace.engine.frameworks import DinoConfig, MaeConfig, MocoV3Config, SimclrConfig
from misplace.engine.models import MODEL_SIZES, ModelSize
from misplace.engine.recipes import recipe

MODEL_SIZES["mini"] = ModelSize(192, 2, 3)  # of nano's width, in a third of its time
NUM_IMAGES, BATCH = 48, 8
TINY = {
    "moco_v3": MocoV3Config(hidden_width=64, output_width=32),
    "simclr": SimclrConfig(output_width=32),
    "dino": DinoConfig(num_prototypes=96, hidden_width=64, bottleneck_width=32, held_epochs=1),
    "mae": MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2),
}


def striped_images(root: Path) -> Path:
    """48 PNGs of 24 x 24 pixels in two classes, vertical and horizontal stripes of random phase and colour."""
    rng = np.random.default_rng(0)
    ramp = np.arange(24)
    for i in range(NUM_IMAGES):
        wave = np.sin(ramp / rng.uniform(1.5, 3.0) + rng.uniform(0, 6))
        plane = np.broadcast_to(wave[:, None] if i % 2 else wave[None], (24, 24))
        image = 127 + 90 * plane[..., None] * rng.uniform(0.4, 1, 3) + rng.normal(0, 9, (24, 24, 3))
        folder = root / ("rows" if i % 2 else "columns")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    return root


def tiny_config(
    name: str,
    source: str | Path,
    out: Path,
    *,
    model: str = "mini",
    pretext: dict | None = None,
    pipeline: str = "pillow",
    **run,
) -> Config:
    """The nano recipe with that model at 24 pixels, patches of 6, batches of 8; `run` overrides RunConfig."""
    base = recipe(name)("nano")
    augment = dataclasses.replace(base.data.augment, local_views=min(2, base.data.augment.local_views), local_size=12)
    run = {"steps": 4, "budget": None, "knn_every": 0.0, "report": False, "precision": "fp32", **run}
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, name=model, image_size=24, patch_size=6),
        data=dataclasses.replace(
            base.data, source=str(source), batch_size=BATCH, workers=0, pipeline=pipeline, augment=augment
        ),
        framework=TINY[name.removesuffix("_dilemma")],
        run=dataclasses.replace(base.run, out=out, device="cpu", **run),
    )
    if pretext:
        config = dataclasses.replace(config, pretext=dataclasses.replace(config.pretext, **pretext))
    return config


def large_batch_config(source: str | Path, out: Path) -> Config:
    """Batches of 48 images in patches of 3, so that activations are some MB each, as in real runs."""
    config = tiny_config("moco_v3_dilemma", source, out, precision="bf16")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, patch_size=3),
        data=dataclasses.replace(config.data, batch_size=NUM_IMAGES),
    )
