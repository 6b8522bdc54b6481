"""misplace compare RECIPE RECIPE ... --budget 10m [--seeds N] [--data SOURCE] [--model NAME] [--out DIR]"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..clock import parse_duration
from ..comparison import Variant, compare, make_plan
from ..comparison.table import print_summary
from ..errors import UserError
from .parsing import parse
from .pretrain import configure

OF_THE_PLAN = ("--steps", "--epochs", "--seed", "--resume", "--run.")


@dataclass(frozen=True)
class Compare:
    """Train recipes for equal times, interleaved in slices, and measure them on the same images.

    Any other option is `misplace pretrain`'s and goes to every recipe, as in --data.batch-size 64. A recipe may bring
    its own: moco_v3_dilemma:pretext.drop_rate=0.5,optim.base_lr=1e-3. Run again, the same command goes on.
    """

    recipes: Positional[tuple[str, ...]]
    """The first is what the others are measured against."""
    budget: str = "10m"
    """Seconds of training for each run, such as 5m: data loading inside, start-up, saving and evaluation outside."""
    seeds: int = 1
    """Runs of each recipe, with seeds 0, 1, ..."""
    slice: str = "15s"
    """Training time of one turn."""
    grid: tuple[str, ...] = ()
    """Every combination of values, of one recipe, as in --grid pretext.drop_rate=0,.5 pretext.wrong_rate=.1,.2."""
    out: Path | None = None
    """Folder; none: runs/compare-N."""
    overwrite: bool = False
    """Delete the comparison that the folder holds first."""
    dry_run: bool = False
    """Say what would be done and what it costs."""


def main(argv: list[str]) -> int:
    """Compare; prints the table and where the page is."""
    run(argv)
    return 0


def run(argv: list[str]) -> Path | None:
    """The same; returns the folder, None after a dry run."""
    own, shared = split_options(argv)
    options = parse(Compare, own, prog="misplace compare")
    variants = [variant(text, shared) for text in options.recipes]
    if options.grid:
        variants = on_grid(variants, options.grid, options.recipes[0], shared)
    plan, source = make_plan(
        variants,
        seeds=options.seeds,
        budget=parse_duration(options.budget),
        slice_seconds=parse_duration(options.slice),
    )
    if options.dry_run:
        print("\n".join(plan.describe()))
        return None
    out = options.out or next_folder(Path("runs"))
    print(f"comparison: {out}", flush=True)
    if compare(plan, source, out, overwrite=options.overwrite):
        print_summary(out / "comparison.json")
        print(f"page: {out / 'report.html'}", flush=True)
    return out


def split_options(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and the options of `misplace pretrain` with their values."""
    own, shared = [], []
    names = {f"--{name.replace('_', '-')}" for name in Compare.__dataclass_fields__} | {"--help", "-h"}
    into = own
    for argument in argv:
        if argument.startswith("--") or argument == "-h":
            name = argument.split("=")[0].replace("_", "-")
            into = own if name in names else shared
            if into is shared and name.startswith(OF_THE_PLAN):
                raise UserError(f"misplace compare: {argument} is the comparison's to decide; see --budget and --seeds")
        into.append(argument)
    return own, shared


def variant(text: str, shared: list[str], axes: tuple[tuple[str, str], ...] = ()) -> Variant:
    """RECIPE or RECIPE:option=value,option=value as a named configuration."""
    name, _, changes = text.partition(":")
    given = [change.partition("=") for change in filter(None, changes.split(","))]
    if bad := next((option for option, equals, _ in given if not equals), None):
        raise UserError(f"{text}: {bad!r} is no option=value, as in {name}:pretext.drop_rate=0.5")
    overrides = [part for option, _, value in given for part in (f"--{option}", value)]
    return Variant(text, configure([name, *shared, *overrides]), axes)


def on_grid(variants: list[Variant], grid: tuple[str, ...], text: str, shared: list[str]) -> list[Variant]:
    """One recipe at every combination of the values."""
    if len(variants) != 1:
        raise UserError(f"--grid varies one recipe; {len(variants)} are named")
    axes = []
    for axis in grid:
        option, equals, values = axis.partition("=")
        if not equals or not values:
            raise UserError(f"--grid {axis}: write it as option=value,value, as in pretext.drop_rate=0,.5")
        axes.append([(option, value) for value in values.split(",")])
    joint = "," if ":" in text else ":"
    return [
        variant(f"{text}{joint}{','.join(f'{option}={value}' for option, value in point)}", shared, point)
        for point in itertools.product(*axes)
    ]


def next_folder(parent: Path) -> Path:
    """The first of parent/compare-1, -2, ... that does not exist."""
    return next(folder for n in itertools.count(1) if not (folder := parent / f"compare-{n}").exists())
