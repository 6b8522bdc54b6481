"""What `make gpu-check` runs: one command per step, on a GPU or, rehearsed with tiny shapes, on the CPU."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .environment import CHECKOUT
from .registry import cases_of, op_names

PYTHON = sys.executable
MISPLACE = (PYTHON, "-m", "misplace.engine.cli")
NO_ENGINE = "-no-jpeg-engine"
PROFILED = ("moco_v3_dilemma", "moco_v3")  # the sparse and the dense step
# peers beyond eager and compile, where a target names them
AGAINST = {
    "attention": ("eager", "compile", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "xformers"),
    "multi_crop": ("eager-sdpa", "compile-sdpa", "per-resolution"),
    "step": ("eager", "dense", "eager-sdpa", "compile-sdpa"),
    "trunk": ("eager-sdpa", "compile-sdpa", "compile-sdpa-graphs", "compile-sdpa-max"),
}


@dataclass(frozen=True)
class Options:
    """Run the GPU tests, all benchmarks, a short pretraining and a profile, and keep the record."""

    device: str = "cuda"
    """cuda, or cpu for a rehearsal with tiny shapes."""
    dry_run: bool = False
    """Print what would run, and stop."""
    out: Path | None = None
    """Folder of the record; none: bench/records/DATE-DEVICE."""
    minutes: float = 9.5
    """All steps together; what does not fit is cut off and counts as failed."""
    data: str = "poses"
    """Images of the pretraining and the profiles."""
    model: str | None = None
    """Their backbone; none: small, in a rehearsal nano."""
    batch_size: int | None = None
    """Their images per step; none: 512, in a rehearsal 8."""
    image_size: int | None = None
    """Their views' side, pixels; none: 224, in a rehearsal the data's own."""
    steps: int | None = None
    """Steps of the pretraining; none: 60, in a rehearsal 4."""


class Step(NamedTuple):
    """One command, run in the checkout; its output is kept in NAME.txt. share: the most of the check's time for it."""

    name: str
    command: tuple[str, ...]
    share: float = 1.0


def plan(options: Options, folder: Path, runs: Path) -> list[Step]:
    """The commands, in the order in which they run; what they train lands in `runs`."""
    sources = [str(path.relative_to(CHECKOUT)) for path in sorted((CHECKOUT / "csrc" / "cuda").glob("*.cu"))]
    tests = ("-q", "-n", "4" if options.device == "cuda" else "2", "--dist", "loadfile", "-m", "gpu", "tests")
    recipe = _recipe_options(options)
    steps = "60" if options.steps is None and options.device == "cuda" else str(options.steps or 4)
    pretrain = ("pretrain", "moco_v3_dilemma", *recipe, "--steps", steps, "--run.no-report", "--run.knn-every", "0")
    return [
        Step("build", (PYTHON, "setup.py", "build_ext", "--inplace"), 0.4),
        Step("info", (PYTHON, "-m", "misplace.bench.build_info", "--require", options.device), 0.2),
        Step("sources", (PYTHON, "-m", "misplace.kernels.testing.nvcc", *sources), 0.3),
        Step("tests", (PYTHON, "-m", "pytest", *tests), 0.4),
        *[Step(f"bench-{op}", (*MISPLACE, *_bench(options, op, folder)), 0.15) for op in op_names()],
        *[Step(f"bench-data{name}", (*MISPLACE, *_bench_data(options, folder, name)), 0.1) for name in ("", NO_ENGINE)],
        Step("recipes", (PYTHON, "-m", "misplace.bench.recipes", *_bench_recipes(options, folder)), 0.2),
        Step("pretrain", (*MISPLACE, *pretrain, "--out", str(runs / "pretrain")), 0.2),
        *[
            Step(
                f"profile-{name}",
                (*MISPLACE, "profile", name, *recipe, *_brief(options), "--out", str(folder / name)),
                0.2,
            )
            for name in PROFILED
        ],
    ]


def _recipe_options(options: Options) -> tuple[str, ...]:
    small = options.device == "cpu"
    chosen = {
        "--data": options.data,
        "--device": options.device,
        "--model": options.model or ("nano" if small else "small"),
        "--data.batch-size": options.batch_size or (8 if small else 512),
        "--model.image-size": options.image_size or (None if small else 224),
        "--model.patch-size": None if small else 16,
    }
    return tuple(str(part) for pair in chosen.items() if pair[1] is not None for part in pair)


def _bench(options: Options, op: str, folder: Path) -> tuple[str, ...]:
    peers = {peer for case in cases_of(op, tiny=True) for peer in case.peers}
    against = ",".join(peer for peer in AGAINST.get(op, ("eager", "compile")) if peer in peers)
    rehearsed = ("--tiny", "--rounds", "3") if options.device == "cpu" else ("--against", against)
    return ("bench", op, "--device", options.device, "--json", str(folder / f"bench-{op}.json"), *rehearsed)


def _bench_data(options: Options, folder: Path, name: str) -> tuple[str, ...]:
    """The input pipeline, with the GPU's JPEG engine and without."""
    engine = ("--no-hardware-decode",) if name == NO_ENGINE else ()
    brief = (
        ("--tiny",)
        if options.device == "cpu"
        else ("--rounds", "2", "--seconds", "2", "--batch-size", "256", "--workers", "8")
    )
    record = ("--json", str(folder / f"bench-data{name}.json"))
    return ("bench", "data", "--device", options.device, *engine, *brief, *record)


def _bench_recipes(options: Options, folder: Path) -> tuple[str, ...]:
    """Images per second of all eight."""
    tiny = ("--model", "nano", "--image-size", "48", "--batch-size", "4", "--rounds", "1")
    whole = ("--model", options.model or "small", "--batch-size", "256", "--rounds", "5")
    record = ("--csv", str(folder / "recipes.csv"))
    return ("--device", options.device, *(tiny if options.device == "cpu" else whole), *record)


def _brief(options: Options) -> tuple[str, ...]:
    return ("--steps", "2", "--rounds", "1", "--profile.warm-up", "1") if options.device == "cpu" else ("--steps", "10")
