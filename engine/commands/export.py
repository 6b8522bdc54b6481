"""misplace export RUN --format timm FILE.safetensors"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ..encoder_file import read_encoder
from ..export import timm_name, write_timm
from .parsing import parse


@dataclass(frozen=True)
class Export:
    """Write the encoder of a run to one file that another library loads as it is."""

    run: Positional[Path]
    """A run folder."""
    file: Positional[Path]
    """The safetensors file to write; its metadata says how to load it."""
    format: Literal["timm"] = "timm"
    """timm: timm.models.vision_transformer.VisionTransformer."""
    overwrite: bool = False
    """Replace a file that is there."""


def main(argv: list[str]) -> int:
    """Export; prints the file and what it is."""
    options = parse(Export, argv, prog="misplace export")
    saved = read_encoder(options.run)
    path = write_timm(options.file, saved.tensors, saved.model, overwrite=options.overwrite)
    known = timm_name(saved.model)
    print(f"wrote {path}: {known or 'a timm VisionTransformer'} of step {saved.step}")
    return 0
