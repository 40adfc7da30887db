"""The make_recipe recipes, the default one, and the fields that identify a training."""

from __future__ import annotations

import pytest

from lowrank.errors import InputError
from lowrank.training.recipe import Recipe, lr_factor
from lowrank.training.recipes import RECIPES, default_recipe, recipe_fields
from lowrank.utils.validation import validate_model


def make_recipe(name: str, **fields: object) -> Recipe:
    return Recipe(**recipe_fields("cifar10", "resnet9", {"recipe": name, **fields}))


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_is_valid(name):
    assert make_recipe(name) == Recipe(**RECIPES[name])


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("study_")])
def test_each_recipe_of_the_study_has_a_fast_one(name):
    fast, study = make_recipe(name.replace("study_", "fast_")), make_recipe(name)
    assert fast.epochs <= study.epochs / 5
    assert (fast.weight_decay, fast.cutout) == (study.weight_decay, study.cutout)


def rates(recipe: Recipe, *epochs: int) -> list[float]:
    return [recipe.lr * lr_factor(recipe, epoch / recipe.epochs) for epoch in epochs]


def test_the_recipes_of_the_study_are_as_published():
    wrn = make_recipe("study_wrn")
    assert (wrn.epochs, wrn.batch_size, wrn.momentum, wrn.nesterov, wrn.weight_decay) == (200, 128, 0.9, False, 5e-4)
    assert (wrn.cutout, wrn.flip, wrn.shift) == (16, True, 4)
    assert rates(wrn, 59, 60, 120, 160) == pytest.approx([0.1, 0.02, 0.004, 0.0008])
    imagenet = make_recipe("study_imagenet")
    assert (imagenet.epochs, imagenet.batch_size, imagenet.weight_decay) == (90, 256, 1e-4)
    assert rates(imagenet, 0, 29, 30, 59, 60, 89) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    darts = make_recipe("study_darts")
    assert (darts.epochs, darts.batch_size, darts.weight_decay, darts.clip_norm) == (600, 96, 3e-4, 5)
    assert (darts.drop_path, darts.schedule) == (0.2, "cosine")
    assert rates(darts, 0, 300) == pytest.approx([0.025, 0.0125])
    sweep = make_recipe("study_tt_sweep")
    assert (sweep.epochs, sweep.batch_size, sweep.nesterov, sweep.lr, sweep.schedule) == (128, 512, True, 0.2, "cosine")


@pytest.mark.parametrize(
    ("data", "network", "expected"),
    [
        ("digits", "resnet9", "digits"), ("digits", "wrn_16_4", "digits"), ("cifar10", "resnet9", "study_tt_sweep"),
        ("cifar10", "wrn_28_10", "study_wrn"), ("cifar100", "darts", "study_darts"),
        ("folder:/images", "wrn_50_2", "study_imagenet"), ("cifar10", "torchvision:resnet18", "study_imagenet"),
        ("cifar10", "mobilenet_v2", "study_imagenet"), ("cifar10", "my.package:network", "study_tt_sweep"),
    ],
)  # fmt: skip
def test_the_default_recipe_follows_data_set_and_network(data, network, expected):
    assert default_recipe(data, network) == expected
    assert Recipe(**recipe_fields(data, network, {})) == Recipe(**RECIPES[expected])


def test_every_field_can_be_overridden():
    recipe = make_recipe("study_wrn", epochs=10, cutout=8)
    assert (recipe.epochs, recipe.cutout, recipe.batch_size) == (10, 8, 128)
    assert rates(recipe, 2, 3) == pytest.approx([0.1, 0.02])


def test_an_unknown_recipe_is_refused():
    with pytest.raises(InputError, match=r"unknown recipe 'study_vgg'; choose from: digits, fast_darts, .*study_wrn"):
        make_recipe("study_vgg")


@pytest.mark.parametrize(
    "fields",
    [
        {"rebuild_checkpoint": True}, {"milestones": (0.1, 0.2)}, {"gamma": 0.5}, {"kd_temperature": 2.0},
        {"decay": "scaled"}, {"scaled_decay": True}, {"attention_weight": 0}, {"freeze": ()},
    ],
)  # fmt: skip
def test_fields_that_change_no_number_are_not_in_the_identity(fields):
    assert Recipe(**fields).identity() == Recipe().identity()


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.1}, {"kd_weight": 0.1}, {"attention_weight": 1000}, {"freeze": ("stem",)}, {"ema_decay": 0.9},
        {"accumulate": 2}, {"decay": "plain"}, {"schedule": "step"}, {"drop_path": 0.1}, {"factor_lr": 2},
        {"precision": "float16"}, {"auxiliary_weight": 0.4}, {"label_smoothing": 0.1}, {"clip_norm": 1.0},
    ],
)  # fmt: skip
def test_fields_that_change_numbers_are_in_the_identity(fields):
    assert Recipe(**fields).identity() != Recipe().identity()


def test_a_dependent_field_is_in_the_identity_where_it_has_an_effect():
    steps, warm = {"schedule": "step"}, {"kd_weight": 0.5}
    assert Recipe(**steps, gamma=0.5).identity() != Recipe(**steps).identity()
    assert Recipe(**warm, kd_temperature=2).identity() != Recipe(**warm).identity()


def test_the_identity_of_the_default_recipe_never_changes():
    """A new field must have a default that does nothing and be listed as optional."""
    assert Recipe().identity() == {
        "epochs": 128, "batch_size": 512, "lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
        "decay": "scaled", "decay_scope": "network", "schedule": "cosine", "warmup": 0.0, "precision": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kd_weight": 1.5}, "`train.kd_weight`: must be less than or equal to 1, but got 1.5"),
        ({"kd_temperature": 0}, "`train.kd_temperature`: must be greater than 0, but got 0"),
        ({"ema_decay": 1}, "`train.ema_decay`: must be less than 1, but got 1"),
        ({"drop_path": -0.1}, "`train.drop_path`: must be greater than or equal to 0, but got -0.1"),
        ({"accumulate": 0}, "`train.accumulate`: must be greater than or equal to 1, but got 0"),
        ({"precision": "float8"}, "`train.precision`: must be 'auto', 'float32', 'bfloat16' or 'float16', but got"),
        ({"recipes": "x"}, "unknown field `train.recipes`"),
    ],
)
def test_an_invalid_field_is_reported_in_one_line(fields, message):
    with pytest.raises(InputError) as caught:
        validate_model(Recipe, fields, "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
