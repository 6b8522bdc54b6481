"""Recipes: functions from the names of a backbone and of the data to a whole configuration."""

from collections.abc import Callable

from ..config import Config
from ..errors import UserError
from .dino import dino, dino_dilemma
from .mae import mae, mae_dilemma
from .moco_v3 import moco_v3, moco_v3_dilemma
from .simclr import simclr, simclr_dilemma

RECIPES: dict[str, Callable[..., Config]] = {
    recipe.__name__: recipe
    for recipe in (moco_v3, moco_v3_dilemma, dino, dino_dilemma, simclr, simclr_dilemma, mae, mae_dilemma)
}


def recipe(name: str) -> Callable[..., Config]:
    """The recipe of that name; unknown names are a UserError that lists the known ones."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; one of: {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = ["RECIPES", *RECIPES, "recipe"]
