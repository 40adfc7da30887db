"""Whether a space's recipes fit its network, before anything is launched or written."""

from __future__ import annotations

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.data import ImageData
from lowrank.layers import Separable
from lowrank.training.optimizer import check_network
from lowrank.training.recipe import Recipe
from sweeps.space.model import Space

_OF_PARTS = ("freeze", "factor_lr", "body_lr", "head_lr", "drop_path", "auxiliary_weight")


def check_recipes(space: Space, data: ImageData) -> None:
    """Check the parts of the network that recipes name, at every end of what is searched; raises InputError.

    The space's own network in its separable form stands for all: its modules have the names that every method's have.
    It is only built where a recipe names a part.
    """
    plain = Recipe()
    points = [{}, *({name.removeprefix("train."): value} for name, domain in space.domains.items()
                    if name.startswith("train.") for value in domain.corners())]  # fmt: skip
    recipes = [space.recipe(point) for point in points]
    naming = [each for each in recipes if any(getattr(each, part) != getattr(plain, part) for part in _OF_PARTS)]
    if not naming:
        return
    plan = network_plan(space.network, data.image_shape, len(data.classes))
    network = build_student(space.network, plan, Separable(), data.image_shape, len(data.classes), seed=0)
    for recipe in naming:
        check_network(network, recipe, len(data.classes))
