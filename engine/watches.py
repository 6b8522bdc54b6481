"""What looks at every step's losses for learning that has gone wrong."""

from collections.abc import Callable

from .collapse import ChanceDetector, CollapseDetector
from .config import Config
from .frameworks import Framework
from .pretexts import DilemmaConfig
from .step import StepResult

Watch = Callable[[int, StepResult], str | None]


def watches(config: Config, framework: Framework) -> list[Watch]:
    """Functions of a step's number and result that say, once, what is wrong."""
    found: list[Watch] = []
    collapsed = framework.collapse_loss(config.data.batch_size)
    if collapsed is not None:
        collapse = CollapseDetector("the framework loss", collapsed, grace=100)
        found.append(lambda step, result: collapse.update(step, result.framework_loss))
    if isinstance(config.pretext, DilemmaConfig):
        chance = ChanceDetector(config.pretext.wrong_rate, grace=200)
        found.append(lambda step, result: chance.update(step, result.terms["bce"]) if "bce" in result.terms else None)
    return found
