"""Recipes: functions from a backbone name to a whole configuration."""

from collections.abc import Callable

from ..config import Config
from ..errors import UserError
from .moco_v3 import moco_v3, moco_v3_dilemma

RECIPES: dict[str, Callable[[str], Config]] = {r.__name__: r for r in (moco_v3, moco_v3_dilemma)}


def recipe(name: str) -> Callable[[str], Config]:
    """The recipe of that name; unknown names are a UserError that lists the known ones."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; one of: {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = ["RECIPES", "moco_v3", "moco_v3_dilemma", "recipe"]
