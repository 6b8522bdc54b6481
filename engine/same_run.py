"""A resumed run is the same run."""

from pathlib import Path

from .config import first_difference
from .errors import UserError

# What may differ between a run and its resumption without changing a single bit of its result.
FREE_TO_CHANGE = ("out", "resume", "overwrite", "log_every", "keep", "knn_every", "report", "cuda_graph")


def refuse_other_config(before: dict, now: dict, where: Path) -> None:
    """UserError for any difference that would change the run's result; both as to_plain gives them."""
    before, now = (
        {**plain, "run": {k: v for k, v in plain["run"].items() if k not in FREE_TO_CHANGE}} for plain in (before, now)
    )
    if difference := first_difference(before, now):
        raise UserError(
            f"{where}: is of another configuration, {difference}; resume with the run's own options, "
            "or give another --out"
        )
