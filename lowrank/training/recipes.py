"""The named recipes, and the default one of each network and data set.

The four recipes `study_*` are as published with the original study. Beside each stands a fast one, for a first answer
in a fraction of the time. Every field can be overridden; a field that a recipe lacks has the default of `Recipe`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lowrank.data import AugmentationSettings, default_augmentation
from lowrank.errors import InputError, unknown
from lowrank.training.recipe import Recipe
from lowrank.utils import format_counted

RECIPE_FIELD = "recipe"  # key that names a recipe, beside the fields that override it
_STEPS = {"schedule": "step", "nesterov": False}
_CROP_FLIP = {"shift": 4, "flip": True}

RECIPES: dict[str, dict[str, Any]] = {
    # The study's wide ResNets on CIFAR: x0.2 at 60, 120 and 160 of 200 epochs
    "study_wrn": {
        **_STEPS, **_CROP_FLIP, "cutout": 16, "epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4,
        "milestones": (0.3, 0.6, 0.8), "gamma": 0.2,
    },
    "fast_wrn": {
        **_CROP_FLIP, "cutout": 16, "epochs": 40, "batch_size": 256, "lr": 0.2, "weight_decay": 5e-4,
        "schedule": "one_cycle", "warmup": 0.25,
    },
    # DARTS as published, without its auxiliary head (`network.auxiliary` and `auxiliary_weight` add it)
    "study_darts": {
        **_CROP_FLIP, "cutout": 16, "epochs": 600, "batch_size": 96, "lr": 0.025, "nesterov": False,
        "weight_decay": 3e-4, "drop_path": 0.2, "clip_norm": 5.0,
    },
    "fast_darts": {
        **_CROP_FLIP, "cutout": 16, "epochs": 60, "batch_size": 128, "lr": 0.1, "warmup": 0.05,
        "weight_decay": 3e-4, "drop_path": 0.1, "clip_norm": 5.0,
    },
    # ImageNet: x0.1 at 30 and 60 of 90 epochs
    "study_imagenet": {
        **_STEPS, "flip": True, "cutout": 0, "epochs": 90, "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4,
        "milestones": (1 / 3, 2 / 3), "gamma": 0.1,
    },
    "fast_imagenet": {
        "flip": True, "cutout": 0, "epochs": 18, "batch_size": 1024, "lr": 0.4, "weight_decay": 1e-4, "warmup": 0.1,
        "label_smoothing": 0.1,
    },
    # The tensor-train sweep on ResNet-9: `Recipe`'s own defaults, with the data set's own views
    "study_tt_sweep": {},
    "fast_tt_sweep": {"epochs": 24, "lr": 0.4, "schedule": "one_cycle", "warmup": 0.2},
    # Ours, for 8 x 8 pixels on a CPU
    "digits": {"epochs": 12, "batch_size": 32, "lr": 0.2, "warmup": 0.2},
}  # fmt: skip

_BY_DATA = {"digits": "digits"}
_BY_NETWORK = (  # the first pattern that matches the whole name
    (r"wrn_50_2|mobilenet_v2|(torchvision|timm|hf):.*", "study_imagenet"),
    (r"wrn_\d+_\d+", "study_wrn"),
    (r"darts", "study_darts"),
)


def default_recipe(data_name: str, network_name: str = "resnet9") -> str:
    """Name the default recipe of a network on a data set.

    Args:
        data_name: a data set with a recipe of its own has that.
        network_name: decides otherwise.

    Returns:
        A key of RECIPES.
    """
    if data_name in _BY_DATA:
        return _BY_DATA[data_name]
    matching = (recipe for pattern, recipe in _BY_NETWORK if re.fullmatch(pattern, network_name))
    return next(matching, "study_tt_sweep")


def recipe_fields(data_name: str, network_name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Combine a named recipe with the fields that override it.

    Args:
        data_name: of the data set, for the default recipe.
        network_name: for the default recipe.
        overrides: fields of `Recipe`, and optionally RECIPE_FIELD with the name of a recipe.

    Returns:
        Fields for `Recipe`.

    Raises:
        InputError: there is no recipe of that name.
    """
    fields = dict(overrides)
    name = str(fields.pop(RECIPE_FIELD, default_recipe(data_name, network_name)))
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return {**RECIPES[name], **fields}


def augmentation_for(
    recipe: Recipe,
    data_name: str,
    image_shape: tuple[int, int, int],
    seed: int,
    defaults: Mapping[str, Any] | None = None,
) -> AugmentationSettings:
    """Choose the augmentation of a recipe on a data set.

    Args:
        recipe: whose fields override those that suit the data set.
        data_name: of the data set.
        image_shape: (C, H, W) of its images.
        seed: of what is drawn for each image; in a study its own, not the trial's.
        defaults: values that replace those that suit the data set.

    Returns:
        The settings.

    Raises:
        InputError: there is no data set of that name, or the recipe leaves nothing of an image to see.
    """
    chosen = {key: getattr(recipe, key) for key in ("shift", "flip", "cutout") if getattr(recipe, key) is not None}
    height, width = image_shape[1:]
    side = min(height, width)
    for key, limit in (("shift", side // 2), ("cutout", side - 1)):  # beyond them, images may be blank
        if chosen.get(key, 0) > max(1, limit):
            raise InputError(
                f"`train.{key}` must be at most {format_counted(max(1, limit), 'pixel')} for images of "
                f"{width}x{height}, but got {chosen[key]}"
            )
    fields = {**(defaults or {}), **chosen, "seed": seed}
    return default_augmentation(data_name, image_shape).model_copy(update=fields)
