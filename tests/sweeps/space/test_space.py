"""Space files: every one that the repository carries is valid, and every mistake is one clear line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from lowrank.errors import InputError
from sweeps.space.files import SPACES_FOLDER, available_spaces, read_yaml
from sweeps.space.parse import parse_space, read_space
from sweeps.study.plan_report import _recipe_line
from sweeps.utils.plain_yaml import load_yaml

SMALL = {
    "question": "Which?",
    "data": {"name": "digits"},
    "network": {"name": "resnet9"},
    "train": {"epochs": 2, "weight_decay": {"log_uniform": [1e-4, 1e-3]}},
    "method": {"name": {"choice": ["tensor_train", "tucker"]}, "dims": {"int": [2, 4]}},
    "budget": {"params": {"choice": [0.1, 0.2]}, "relative_to": "separable"},
}


def changed(path: str, value: object) -> dict:
    content = copy.deepcopy(SMALL)
    *parents, last = path.split(".")
    section = content
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value
    return content


def test_the_repository_carries_valid_spaces_with_questions():
    names = set(available_spaces())
    assert {"tt_dims", "tucker_dims", "tt_schedule"} <= names
    series = {name for name, path in available_spaces().items() if "studies" in read_yaml(path)}
    assert series < names
    for name in names - series:
        space = read_space(name)
        assert space.question.endswith("?")
        assert space.name == name


def test_domains_are_separated_from_literals():
    space = parse_space("small", SMALL)
    assert set(space.domains) == {"train.weight_decay", "budget.params"}
    assert set(space.alternatives[0][1]) == {"name", "dims"}
    assert space.train == {"epochs": 2}
    assert space.has_budget


def test_numbers_without_a_decimal_point_are_numbers():
    content = load_yaml("train: {lr: 1e-1, weight_decay: {log_uniform: [1e-5, 1e-2]}}")
    space = parse_space("small", {**SMALL, **content})
    assert space.train["lr"] == 0.1
    assert space.domains["train.weight_decay"].corners() == (1e-5, 1e-2)


def test_overrides_and_options_change_fields():
    space = read_space(
        "tt_dims", ["train.epochs=3", "budget.params={choice: [0.5]}", "train.lr=1e-2"], data__name="fashion_mnist",
        search__trials=7, search__time=None,
    )  # fmt: skip
    assert space.recipe({}).epochs == 3
    assert space.recipe({}).lr == 0.01
    assert space.domains["budget.params"].corners() == (0.5,)
    assert (space.data.name, space.search.trials, space.search.time) == ("fashion_mnist", 7, None)


def test_fields_override_the_named_recipe():
    space = read_space("tt_dims", ["train.recipe=fast_wrn", "train.epochs=7", "train.freeze=[stem]"])
    recipe = space.recipe({})
    assert (recipe.epochs, recipe.batch_size, recipe.schedule, recipe.freeze) == (7, 256, "one_cycle", ("stem",))
    with pytest.raises(InputError, match=r"unknown recipe 'fast'; choose from: digits, fast_darts, .*study_wrn"):
        read_space("tt_dims", ["train.recipe=fast"])
    with pytest.raises(InputError, match=r"unknown field `train.recipes`; choose from: .*, recipe, "):
        read_space("tt_dims", ["train.recipes=fast_wrn"])


def test_recipes_can_be_searched_and_the_network_chooses_where_none_is_named():
    space = read_space("tt_dims", ["train.recipe={choice: [study_wrn, fast_wrn]}"])
    assert [space.recipe({"recipe": name}).epochs for name in ("study_wrn", "fast_wrn")] == [200, 40]
    assert read_space("tt_dims", data__name="cifar10").recipe({}, "wrn_28_10").epochs == 200
    with pytest.raises(InputError, match="unknown recipe 'slow_wrn'"):
        read_space("tt_dims", ["train.recipe={choice: [study_wrn, slow_wrn]}"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", "recipe: digits, schedule cosine, batch_size 32, lr 0.2, weight_decay searched"),
        ("train.recipe=study_wrn", "recipe: study_wrn, schedule step, batch_size 128, lr 0.1, weight_decay searched"),
        ("train.recipe={choice: [digits, fast_wrn]}", "recipe: searched"),
    ],
)
def test_a_plan_names_the_recipe(override, expected):
    assert _recipe_line(read_space("tt_dims", [override])) == expected


def test_fields_of_the_space_override_the_recipe_of_the_data_set():
    assert read_space("tt_dims").recipe({}).epochs == 12
    assert read_space("tt_dims", data__name="cifar10").recipe({}).epochs == 128
    assert read_space("tt_dims", data__name="cifar10").recipe({}).batch_size == 512


def test_data_and_network_may_be_written_as_a_name(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "data": "digits", "network": "resnet9"}))
    assert read_space(str(path)).data.name == "digits"
    changed_space = read_space(str(path), ["network.width=0.5"], data__name="cifar10")
    assert (changed_space.data.name, changed_space.network.width) == ("cifar10", 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("trian", {}), r"unknown section `trian` \(did you mean `train`\?\)"),
        ({key: value for key, value in SMALL.items() if key != "question"}, "`question` is missing"),
        ({key: value for key, value in SMALL.items() if key != "method"}, "`method` must be a section with a `name`"),
        (changed("method.name", "cpp"), "unknown method 'cpp'; choose from: .*tensor_train"),
        (changed("method.dim", 3), r"unknown field of `method` 'dim'; choose from: dims"),
        (changed("method.dims", {"int": [2, 12]}), "`method.dims`: must be less than or equal to 9, but got 12"),
        (changed("method.rank_scale", 0.5), "`method.rank_scale` is solved from `budget`; give one of the two"),
        (changed("budget", {}), "tensor_train needs a size: give `budget.params`"),
        (changed("budget.params", -1), "`budget.params`: must be greater than 0, but got -1"),
        (changed("budget.params", {"choice": [0.1, 3]}), "a share of at most 1, but got 3"),
        (changed("budget.flops", 3), "unknown field `budget.flops`; choose from: allocation, bytes, .* params"),
        (changed("train.lr", 0), "`train.lr`: must be greater than 0, but got 0"),
        (changed("train.lr", {"uniform": [-1, 1]}), "`train.lr`: must be greater than 0, but got -1.0"),
        (changed("train.schedule", "linear"), "`train.schedule`: must be 'cosine', 'step'.* but got 'linear'"),
        (changed("train.lr", {"unifrom": [1, 2]}), r"`train.lr` must be one value or a domain"),
        (changed("train.milestones", [0.9, 0.1]), "`milestones` must rise"),
        (changed("data.val_fraction", 1.5), "`data.val_fraction`: must be less than 1, but got 1.5"),
        (changed("data.val_fraction", {"uniform": [0.1, 0.2]}), "`data.val_fraction` cannot be searched"),
        (changed("references", ["tuker"]), "unknown reference 'tuker'; choose from: .*dense, .*did you mean tucker"),
        (changed("references", "dense"), "`references` must be a list"),
        (
            {**SMALL, "train": {"decay": {"choice": ["plain", "scaled"]}, "scaled_decay": {"choice": [True, False]}}},
            "search one of the two",
        ),
        (changed("references", ["dense", "dense"]), "`references` must list each name once"),
        (changed("search", {"seed": 2**63}), "`search.seed`: must be less than 9223372036854775808"),
        (changed("train.lr", float("inf")), "`train.lr`: must be a finite number, but got inf"),
        (changed("budget.params", {"choice": [None, 0.1]}), "`budget.params` must be a number"),
        (changed("budget.relative_to", {"choice": ["dense", "separable"]}), "must be shares of one network"),
        (changed("resources", {"cpus_per_trial": 1e-5}), "greater than or equal to 0.1"),
        (
            changed("search", {"sampler": "cmaes"}),
            "`search.sampler`: must be 'tpe', 'nsga2', 'gp', 'random', 'qmc' or 'grid'",
        ),
        (changed("search", {"sampler": "grid"}), "a grid needs finite domains; `train.weight_decay` is continuous"),
        (changed("search", {"objectives": ["params"]}), "`search.objectives` must hold val_error"),
        (changed("search", {"trials": 0}), "`search.trials`: must be greater than or equal to 1, but got 0"),
        (
            changed("resources", {"cpus_per_trial": 0}),
            "`resources.cpus_per_trial`: must be greater than or equal to 0.1",
        ),
        (changed("data", 3), "`data` must be a section with fields, but got 3"),
        (changed("method", [{"name": "tucker"}, {"name": "tucker"}]), "a list of `method` sections needs"),
    ],
)
def test_a_mistake_gives_one_line_that_names_the_rule(content, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_space("small", content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "is not YAML"),
        ("- 1", "must be a mapping with the sections question"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_no_space_gives_one_line(tmp_path: Path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_space(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"--set must be written a.b=value, but got 'train.lr'"),
        ("question.x=1", "cannot set `question.x`"),
        ("train.lr=[1", "the value is not YAML"),
        ("train.lr=&a [*a]", "the value is not YAML of plain values"),
    ],
)
def test_a_wrong_override_gives_one_line(override, message):
    with pytest.raises(InputError, match=message):
        read_space("tt_dims", [override])


def test_an_unknown_space_lists_the_spaces():
    with pytest.raises(InputError, match=r"unknown space 'tt'; choose from: tt_dims, .*tt_schedule, tucker_dims"):
        read_space("tt")
    with pytest.raises(InputError, match=r"no space file 'none.yaml'"):
        read_space("none.yaml")


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=True), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.sampled_from(["choice", "int", "x"]), st.integers()),
)  # fmt: skip
PATHS = [f"{section}.{key}" for section, fields in SMALL.items() if isinstance(fields, dict) for key in fields]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*PATHS, *SMALL, "search.trials", "search.time", "resources.max_concurrent", "x"]), LEAVES)
def test_a_mutated_space_is_valid_or_gives_one_line(path, value):
    said = ""
    try:
        parse_space("small", changed(path, value))
    except InputError as error:
        said = str(error)
    assert "\n" not in said


def test_every_space_file_has_a_question():
    for path in SPACES_FOLDER.glob("*.yaml"):
        assert path.read_text().startswith("question:")
