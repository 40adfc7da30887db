"""Messages about values that a model of settings refuses: the rule, an example of a right value, the value."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from lowrank.errors import InputError
from lowrank.layers import METHODS, make_method
from lowrank.networks import NetworkSettings
from lowrank.training import Recipe
from lowrank.utils import validate_model
from sweeps.space import read_space
from sweeps.utils import load_yaml

MODELS = {
    "lowrank.networks": ("NetworkSettings",),
    "lowrank.training": ("Recipe",),
    "lowrank.data.settings": ("DataSettings", "AugmentationSettings"),
    "lowrank.io.image_preprocessing": ("ImagePreprocessing",),
    "sweeps.space.settings": (
        "SearchSettings", "AnswerSettings", "ResourceSettings", "StartSettings", "BudgetSettings", "TeacherSettings",
    ),
}  # fmt: skip
WRONG = ["x", "", 0.5, -1, 10**30, [0.5], ["x"], [], [1, 2, 3], {"a": 1}, None, True, float("nan")]
# Words of pydantic that say what Python would make of a value
RAW = re.compile(r"valid (tuple|list|dictionary|string|number|integer|boolean)|Tuple|String|parse|interpret|validation")


def all_models() -> list[type]:
    """Every model of the settings that a user writes."""
    models = [getattr(import_module(module), name) for module, names in MODELS.items() for name in names]
    return [*models, *METHODS.values()]


def message(model: type, field: str, value: object) -> str:
    """The message about one field; "" if its value is right."""
    try:
        validate_model(model, {field: value}, "section")
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.__name__)
def test_a_wrong_value_is_refused_with_an_example_that_is_right(model: type) -> None:
    messages = [(field, message(model, field, value)) for field in model.model_fields for value in WRONG]
    assert any(text for _, text in messages)
    for field, text in messages:
        assert not RAW.search(text)
        assert "\n" not in text
        example = re.search(rf"^`section\.{field}`: must be .*, such as (.*), but got", text)
        if example:
            assert f"`section.{field}`" not in message(model, field, load_yaml(example[1]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.mean=0.5", "`data.mean`: must be a list, such as [0.5], but got 0.5"),
        ("search.objectives=params", "`search.objectives`: must be a list, such as [params], but got 'params'"),
        ("search.enqueue=[3]", "`search.enqueue.0`: must be a section of fields, such as {name: value}, but got 3"),
        ("network.name=[x]", "`network.name`: must be a text, such as x, but got ['x']"),
        ("network.linear=2", "`network.linear`: must be true or false, but got 2"),
        ("network.hidden=[]", "`network.hidden`: must be a list of at least 1 entry, but got []"),
        ("train.epochs=1.5", "`train.epochs`: must be a whole number, such as 128, but got 1.5"),
        ("train.lr=fast", "`train.lr`: must be a number, such as 0.2, but got 'fast'"),
        ("train.lr=[0.1, 0.2]", "`train.lr`: must be a number, such as 0.2, or {choice: [...]} for several, "
                                "but got [0.1, 0.2]"),
        ("budget.allocation=[even, energy]", "`budget.allocation`: must be 'even', 'stage', 'layer', 'energy' or "
                                             "'sensitivity', or {choice: [...]} for several, but got "
                                             "['even', 'energy']"),
        ("search.sampler=[grid, random]", "`search.sampler`: must be 'tpe', 'nsga2', 'gp', 'random', 'qmc' or 'grid', "
                                          "but got ['grid', 'random']"),
        ("method.dims=[2, 3]", "`method.dims`: must be a whole number, such as 3, or {choice: [...]} for several, "
                               "but got [2, 3]"),
        ("method.name=[x]", "`method.name` must be a text, such as separable, or {choice: [...]} for several, "
                            "but got ['x']"),
        ("method.name=null", "`method.name` must be a text, such as separable, but got None"),
        ("method=3", "`method` must be a section with a `name`, such as {name: separable}, or a list of such sections, "
                     "but got 3"),
        ("teacher.taps=[1.5]", "`teacher.taps.0`: must be a text, but got 1.5"),
    ],
)  # fmt: skip
def test_a_wrong_override_says_the_rule_an_example_and_the_value(override: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_space("distill", [override])
    assert str(caught.value) == expected


def test_a_method_of_the_library_must_be_named_by_a_text() -> None:
    with pytest.raises(InputError, match=r"^`method\.name` must be a text, such as separable, but got \['svd'\]$"):
        make_method({"name": ["svd"]})


def test_modules_may_be_named_by_one_text_or_by_their_number_in_a_sequence() -> None:
    assert NetworkSettings(keep="layer1.*").keep == ("layer1.*",)
    assert NetworkSettings(only=[3, "a"]).only == ("3", "a")
    assert Recipe(freeze=0).freeze == ("0",)
    assert read_space("distill", ["teacher.taps=[1, b]"]).teacher.taps == ("1", "b")
    for value in (True, [True], 1.5):
        with pytest.raises(InputError, match="must be a"):
            validate_model(NetworkSettings, {"keep": value}, "network")
