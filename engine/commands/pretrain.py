"""misplace pretrain RECIPE [--data SOURCE] [--budget 10m | --epochs N | --steps N] [--section.key value ...]"""

from ..config import Config, DataConfig, ModelConfig
from ..errors import UserError
from ..models import MODEL_SIZES
from ..recipes import RECIPES, recipe
from ..trainer import pretrain
from .parsing import parse


def configure(argv: list[str]) -> Config:
    """The configuration that a command line asks for: the recipe's, for its model and data, then the overrides."""
    if not argv or argv[0].startswith("-"):
        raise UserError(f"misplace pretrain RECIPE: name a recipe, one of: {', '.join(RECIPES)}")
    name, overrides = argv[0], argv[1:]
    default = recipe_of(name, overrides)
    config = parse(Config, _own_length(default, overrides), prog=f"misplace pretrain {name}", default=default)
    return config.validate()


def recipe_of(name: str, argv: list[str]) -> Config:
    """The recipe's own settings, which depend on the --model and the --data of `argv`."""
    model = _last(argv, "--model", "--model.name") or ModelConfig.name
    if model not in MODEL_SIZES:
        raise UserError(f"--model {model}: unknown; one of: {', '.join(MODEL_SIZES)}")
    return recipe(name)(model, _last(argv, "--data", "--data.source") or DataConfig.source)


def _last(argv: list[str], *options: str) -> str | None:
    """The value that is given last to one of `options`, which counts where there are several; none: not given."""
    found = None
    for argument, following in zip(argv, [*argv[1:], ""]):
        option, equals, value = argument.partition("=")
        if option in options:
            found = value if equals else following
    return found


def _own_length(default: Config, argv: list[str]) -> list[str]:
    """A length given on the command line replaces the recipe's own instead of standing beside it."""
    lengths = ("steps", "epochs", "budget")
    given = {n for n in lengths for a in argv if a.split("=")[0] in (f"--{n}", f"--run.{n}")}
    unset = [n for n in lengths if getattr(default.run, n) is not None and n not in given] if given else []
    return argv + [part for n in unset for part in (f"--{n}", "None")]


def main(argv: list[str]) -> int:
    """Train; returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__)
        print(f"\nrecipes: {', '.join(RECIPES)}; `misplace pretrain RECIPE --help` lists every option")
        return 0
    pretrain(configure(argv))
    return 0
