"""What a pretraining run is made of. `pretrain` is the command line as a function."""

from pathlib import Path


def pretrain(recipe: str, **options) -> Path:
    """`misplace pretrain RECIPE --option value ...`; returns the run folder.

    options: as on the command line, dotted ones by unpacking a dict, as in
    pretrain("moco_v3_dilemma", model="nano", budget="2m", **{"pretext.drop_rate": 0.5}). True sets a flag.
    Raises misplace.engine.errors.UserError for what the command would refuse.
    """
    from .commands.pretrain import configure
    from .trainer import pretrain as run

    return run(configure([recipe, *_arguments(options)]))


def _arguments(options: dict) -> list[str]:
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments
