"""The one typed configuration of a run. Every value is plain, so that it is written beside the run and read back."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import AvoidSubcommands, Suppress, arg

from .data.augmentation import AugmentConfig
from .errors import UserError
from .frameworks import DinoConfig, MaeConfig, MocoV3Config, SimclrConfig
from .optim import OptimConfig
from .pretexts import DilemmaConfig, NoPretextConfig

FrameworkConfig = MocoV3Config | DinoConfig | SimclrConfig | MaeConfig
PretextConfig = DilemmaConfig | NoPretextConfig
KINDS = {
    "moco_v3": MocoV3Config,
    "dino": DinoConfig,
    "simclr": SimclrConfig,
    "mae": MaeConfig,
    "dilemma": DilemmaConfig,
    "none": NoPretextConfig,
}


@dataclass(frozen=True)
class ModelConfig:
    """The backbone."""

    name: Annotated[Literal["nano", "tiny", "small", "base", "large"], arg(aliases=["--model"])] = "small"
    """Backbone size; nano is width 192, 6 blocks, 3 heads."""
    init: Literal["xavier_uniform", "xavier_whole_qkv", "trunc_normal", "uniform_fan_in"] = "xavier_uniform"
    """Initial weights: MoCo v3's, MAE's, those of timm and DeiT, or PyTorch's own default."""
    freeze_patch_projection: bool = True
    """Keep the patch projection at its initial weights, as MoCo v3 does."""
    learned_position: bool = False
    """Train the table of positions instead of taking the fixed 2-D sin-cos one."""
    num_heads: int | None = None
    """Attention heads; none: the size's own."""
    image_size: int | None = None
    """Side of a view, pixels; none: the data source's."""
    patch_size: int | None = None
    """Side of a patch, pixels; none: the data source's."""


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they become views."""

    source: Annotated[str, arg(aliases=["--data"])] = "poses"
    """An image folder, tar shards, `fashion-mnist` or `poses`."""
    batch_size: int = 256
    """Images per step, all devices together."""
    pipeline: Literal["auto", "dali", "pillow"] = "auto"
    """Who decodes and augments; auto: DALI where it is installed."""
    hardware_decode: bool = True
    """The JPEG engine of a GPU that has one takes part in decoding."""
    workers: int | None = None
    """Threads of DALI or worker processes of Pillow; none: from the cores."""
    prefetch: int = 4
    """Batches ready ahead, of each worker process of Pillow."""
    max_bad_share: float = 0.001
    """Share of the source's images that may be unreadable before the run stops."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class RunConfig:
    """How long, where, and what is written."""

    steps: Annotated[int | None, arg(aliases=["--steps"])] = None
    """Length of the run in steps."""
    epochs: Annotated[float | None, arg(aliases=["--epochs"])] = None
    """Length of the run in epochs."""
    budget: Annotated[str | None, arg(aliases=["--budget"])] = None
    """Length of the run in wall-clock time of training, such as 5m; schedules follow its share."""
    out: Annotated[Path | None, arg(aliases=["--out"])] = None
    """Run folder; none: runs/RECIPE-N."""
    resume: Annotated[bool, arg(aliases=["--resume"])] = False
    """Go on from the run folder's last checkpoint."""
    overwrite: Annotated[bool, arg(aliases=["--overwrite"])] = False
    """Delete what the run folder holds first."""
    seed: Annotated[int, arg(aliases=["--seed"])] = 0
    """Seed of weights, sample order, augmentation and plans."""
    device: Annotated[str | None, arg(aliases=["--device"])] = None
    """cpu or cuda; none: cuda where there is one."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Matrix work; losses and norms are always fp32."""
    cuda_graph: bool = True
    """Each step as one CUDA graph, where there is a CUDA device and the implementations allow it."""
    impl: str = ""
    """Implementation of the ops instead of the best: `reference`, or `attention=torch,...`."""
    log_every: int = 5
    """Steps between lines of metrics.jsonl."""
    checkpoint_minutes: float = 2.0
    """Minutes of training between checkpoints."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, instead of minutes."""
    keep: int = 2
    """Checkpoints kept."""
    knn_every: float = 0.25
    """Share of the run between k-NN evaluations; 0: none."""
    report: bool = True
    """Evaluate the encoder before and after, and write report.html."""


@dataclass(frozen=True)
class Config:
    """framework x pretext x backbone x data x optimiser."""

    recipe: Suppress[str] = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    framework: AvoidSubcommands[FrameworkConfig] = field(default_factory=MocoV3Config)
    pretext: AvoidSubcommands[PretextConfig] = field(default_factory=NoPretextConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def validate(self) -> "Config":
        """This configuration, or a UserError that names the first option that cannot be."""
        lengths = [n for n in ("steps", "epochs", "budget") if getattr(self.run, n) is not None]
        if len(lengths) > 1:
            raise UserError(f"--{lengths[0]} and --{lengths[1]} both set the length of the run; give one")
        for option, value, low in (
            ("--data.batch-size", self.data.batch_size, 2),
            ("--data.prefetch", self.data.prefetch, 1),
            ("--run.log-every", self.run.log_every, 1),
            ("--run.keep", self.run.keep, 1),
            ("--run.checkpoint-steps", self.run.checkpoint_steps, 1),
            ("--steps", self.run.steps, 1),
            ("--data.workers", self.data.workers, 0),
            ("--seed", self.run.seed, 0),
        ):
            if value is not None and value < low:
                raise UserError(f"{option} {value}: must be {low} or more")
        if self.run.seed >= 2**64:
            raise UserError(f"--seed {self.run.seed}: must be below 2^64")
        if not 0 <= self.run.knn_every <= 1:
            raise UserError(f"--run.knn-every {self.run.knn_every}: a share of the run, 0 to 1")
        if not 0 <= self.data.max_bad_share <= 1:
            raise UserError(f"--data.max-bad-share {self.data.max_bad_share}: a share, 0 to 1")
        return self


def to_plain(value) -> object:
    """Dataclasses as dicts of JSON types; a framework or pretext carries its `kind`."""
    if dataclasses.is_dataclass(value):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = next((name for name, cls in KINDS.items() if type(value) is cls), None)
        return plain if kind is None else {"kind": kind, **plain}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(cls: type, plain: dict):
    """The inverse of to_plain for a dataclass; an unknown or missing key is a UserError."""
    plain = dict(plain)
    cls = KINDS.get(plain.pop("kind", None), cls)
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    if extra := sorted(set(plain) - names):
        raise UserError(f"config: unknown key {extra[0]!r} in {cls.__name__}; written by another version?")
    return cls(**{name: _value(hints[name], v) for name, v in plain.items()})


def _value(hint, value):
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            return from_plain(option, value)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(value)
        if option is Path and isinstance(value, str):
            return Path(value)
    return value


def first_difference(a: dict, b: dict, path: str = "") -> str | None:
    """The dotted name of the first key whose value differs, for an error that can be acted on."""
    for key in sorted(a.keys() | b.keys()):
        here, left, right = f"{path}{key}", a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            if deeper := first_difference(left, right, f"{here}."):
                return deeper
        elif left != right:
            return f"{here} ({left!r} and {right!r})"
    return None
