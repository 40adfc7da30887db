"""The short forms of a space file stand for their long ones, and the content that is given stays as it is."""

from __future__ import annotations

import copy

import pytest

from lowrank.errors import InputError
from sweeps.space.parse import resolve_content
from sweeps.space.shorthand import apply_data_overrides, expand_shorthand, set_field, set_start_weights


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"budget": {"params": {"min": 0.2, "max": 0.4}}}, {"budget": {"params": 0.4, "params_min": 0.2}}),
        ({"budget": {"params": {"max": 0.4}}}, {"budget": {"params": 0.4}}),
        ({"budget": {"step_ms": {"max": 3}}}, {"budget": {"step_ms": 3}}),
        ({"budget": {"params": {"choice": [1, 2]}}}, {"budget": {"params": {"choice": [1, 2]}}}),
        (
            {"budget": {"allocation": "stage"}},
            {"budget": {"allocation": "stage", "shares": {"log_uniform": [0.5, 2.0]}}},
        ),
        ({"budget": {"allocation": "stage", "shares": 1}}, {"budget": {"allocation": "stage", "shares": 1}}),
        ({"start": "dense"}, {"start": {"how": "dense"}}),
        ({"start": {"choice": ["scratch", "dense"]}}, {"start": {"how": {"choice": ["scratch", "dense"]}}}),
        ({"start": {"how": "dense"}}, {"start": {"how": "dense"}}),
    ],
)  # fmt: skip
def test_short_forms_are_written_out(short, long):
    before = copy.deepcopy(short)
    assert expand_shorthand(short) == long
    assert short == before
    assert expand_shorthand(long) == long


@pytest.mark.parametrize(
    ("budget", "form"),
    [
        ({"params": {}}, r"\{min: A, max: B\}"),
        ({"params": {"least": 1}}, r"\{min: A, max: B\}"),
        ({"step_ms": {"min": 1, "max": 2}}, r"\{max: B\}"),
    ],
)
def test_a_window_with_other_ends_is_refused(budget, form):
    with pytest.raises(InputError, match=form):
        expand_shorthand({"budget": budget})


@pytest.mark.parametrize(
    ("start", "how"),
    [(None, "dense"), ("scratch", "dense"), ({"how": "dense"}, "dense"),
     ({"choice": ["scratch", "dense"]}, {"choice": ["scratch", "dense"]})],
)  # fmt: skip
def test_weights_are_started_from_unless_the_space_searches_how(start, how):
    content = {} if start is None else {"start": start}
    set_start_weights(content, "w.safetensors")
    assert content == {"start": {"how": how, "weights": "w.safetensors"}}


def test_weights_for_a_start_that_is_no_section_are_refused():
    with pytest.raises(InputError, match=r"`start` must be a section with fields, but got 5"):
        set_start_weights({"start": 5}, "w.safetensors")


@pytest.mark.parametrize("data", ["digits", {"name": "digits"}, None])
def test_fields_for_the_spaces_own_data_set_replace_its_fields(data):
    content = {
        "network": "resnet9",
        "by_data": {"digits": {"network.width": 0.5, "train.epochs": 2}, "cifar10": {"x": 1}},
    }
    if data is not None:
        content["data"] = data
    merged, lost = apply_data_overrides(content)
    assert lost == []
    assert merged["network"] == {"name": "resnet9", "width": 0.5}
    assert merged["train"] == {"epochs": 2}
    assert "by_data" not in merged
    assert "x" not in merged


def test_fields_by_data_of_another_form_are_refused():
    with pytest.raises(InputError, match="`by_data` must be a section of data sets"):
        apply_data_overrides({"by_data": {"digits": 5}})
    with pytest.raises(InputError, match="`by_data` must be a section of data sets"):
        _resolved(_content() | {"by_data": "x"}, [("by_data.digits", None)])


def test_a_name_through_a_field_that_is_no_section_is_refused():
    with pytest.raises(InputError, match=r"cannot set `train.lr.x`: `lr` is not a section with fields"):
        set_field({"train": {"lr": 0.1}}, "train.lr.x", 1)


def _content():
    return {
        "data": {"name": "digits"}, "method": {"name": "svd", "bias": True}, "train": {"epochs": 3, "lr": 0.1},
        "by_data": {"digits": {"train.epochs": 5}},
    }  # fmt: skip


def _resolved(content, changes=(), overrides=()):
    return resolve_content(content, list(changes), (overrides, {}))


@pytest.mark.parametrize("typed", [False, True])
def test_a_dotted_name_within_by_data_sets_that_field_alone(typed, capsys):
    for key, value in (("by_data.digits.method.name", "tucker2"), ("by_data.digits.train.lr", 0.2)):
        content = _resolved(_content(), *(((), [f"{key}={value}"]) if typed else ([(key, value)],)))
        section, _, field = key.removeprefix("by_data.digits.").partition(".")
        expected = {"method": {"name": "svd", "bias": True}, "train": {"epochs": 5, "lr": 0.1}}
        expected[section][field] = value
        assert {name: content[name] for name in expected} == expected
        assert "by_data" not in content
    assert capsys.readouterr().err == ""


def test_a_field_for_another_data_set_changes_nothing():
    assert _resolved(_content(), [("by_data.cifar10.train.lr", 9)])["train"] == {"epochs": 5, "lr": 0.1}


def test_a_typed_field_wins_over_one_typed_for_the_data_set():
    content = _resolved(_content(), (), ["train.lr=0.3", "by_data.digits.train.lr=0.2"])
    assert content["train"]["lr"] == 0.3


def test_what_is_set_last_within_by_data_is_applied_last():
    content = _content() | {"by_data": {"digits": {"method.name": "a", "method": {"name": "b", "bias": False}}}}
    assert _resolved(content, [("by_data.digits.method.name", "c")])["method"] == {"name": "c", "bias": False}


@pytest.mark.parametrize("value", [{"train.lr": 0.2}, None])
def test_the_fields_of_one_data_set_are_added_to_or_taken_out_as_a_whole(value):
    expected = {"epochs": 3, "lr": 0.1} if value is None else {"epochs": 5, "lr": 0.2}
    assert _resolved(_content(), [("by_data.digits", value)])["train"] == expected
    whole = value and {"digits": value}
    assert _resolved(_content(), [("by_data", whole)])["train"] == expected


def test_the_name_of_a_data_set_may_have_dots_and_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = _content() | {"data": f"folder:{tmp_path}/a.b", "by_data": {"folder:./a.b": {"train.epochs": 7}}}
    changed = _resolved(content, [("by_data.folder:a.b.train.lr", 0.2)])
    assert changed["train"] == {"epochs": 7, "lr": 0.2}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("by_data.digits", 3, "cannot set `by_data.digits`: a field must follow the data set's name, such as"),
        ("by_data", 3, "cannot set `by_data`: a field must follow"),
        ("by_data.digist.train.lr", 3, "`by_data`: unknown data set 'digist'; choose from: .* did you mean digits"),
        ("by_data.digits.train.lr.x", 3, "cannot set `train.lr.x`: `lr` is not a section"),
    ],
)
def test_a_field_by_data_that_cannot_be_meant_is_refused(key, value, message):
    with pytest.raises(InputError, match=message):
        _resolved(_content(), [(key, value)])


@pytest.mark.parametrize("by_data", [3, {"digits": 3}])
def test_a_field_by_data_in_a_section_of_another_form_is_refused(by_data):
    with pytest.raises(InputError, match="`by_data` must be a section of data sets, each with fields"):
        _resolved(_content() | {"by_data": by_data}, [("by_data.digits.train.lr", 1)])


@pytest.mark.parametrize(
    ("overrides", "section", "fields"),
    [
        (["train={epochs: 9}"], "train", "lr"),
        (["method=tucker2"], "method", "bias"),
        (["by_data.digits.train={lr: 1}"], "train", "epochs"),
        (["start=dense"], "start", "weights"),
        (["network={width: 0.5}"], "network", "name, stem"),
    ],
)
def test_fields_that_a_whole_section_leaves_out_are_named(overrides, section, fields, capsys):
    content = _content() | {"start": {"how": "in_order", "weights": "w"}, "network": {"name": "n", "stem": "s"}}
    _resolved(content, (), overrides)
    message = f"`{section}` is set as a whole, so these fields of it no longer hold: {fields}; one field alone is set"
    assert capsys.readouterr().err == f"{message} by `{section}.FIELD`\n"


@pytest.mark.parametrize(
    "overrides",
    [["train={epochs: 9}", "train.lr=1"], ["teacher=null"], ["train.epochs={choice: [1, 2]}"], ["budget.params=0.3"],
     ["network=vgg16"], ["start=dense"]],
)  # fmt: skip
def test_nothing_is_said_where_no_field_is_lost(overrides, capsys):
    content = _content() | {"teacher": {"name": "t", "views": 2}, "network": {"name": "n"}, "start": {"how": "dense"}}
    _resolved(content | {"budget": {"params": {"min": 0.1, "max": 0.2}}}, (), overrides)
    assert capsys.readouterr().err == ""


def test_a_field_of_an_empty_section_can_be_set():
    content = {"train": None}
    set_field(content, "train.lr", 1)
    assert content == {"train": {"lr": 1}}


@pytest.mark.parametrize("start", ["in_order", {"choice": ["in_order", "dense"]}])
def test_a_field_of_a_start_in_its_short_form_can_be_set(start):
    content = {"start": start}
    set_field(content, "start.weights", "w")
    assert content == {"start": {"how": start, "weights": "w"}}
