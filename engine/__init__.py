"""What a pretraining run is made of. `pretrain`, `compare` and `evaluate` are the command line as functions."""

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


def compare(*recipes: str, **options) -> Path | None:
    """`misplace compare RECIPE RECIPE ... --option value ...`; returns the comparison's folder.

    options: as pretrain's, as in compare("dino", "dino_dilemma", model="nano", data="poses", budget="5m", seeds=3).
    Raises misplace.engine.errors.UserError for what the command would refuse.
    """
    from .commands.compare import run

    return run([*recipes, *_arguments(options)])


def evaluate(run: Path | str, protocol: str = "knn", **options) -> dict:
    """`misplace evaluate RUN --protocol NAME --option value ...`; returns what its last line says.

    options: as pretrain's, as in evaluate(run, "linear", shots="1,5,10"). Raises as compare.
    """
    from .commands.evaluate import evaluate as measure

    return measure([str(run), "--protocol", protocol, *_arguments(options)])


def _arguments(options: dict) -> list[str]:
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments
