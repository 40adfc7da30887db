"""The short forms of a space file stand for their long ones, and the content that is given stays as it is."""

from __future__ import annotations

import copy

import pytest

from lowrank.errors import InputError
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
    merged = apply_data_overrides(content)
    assert merged["network"] == {"name": "resnet9", "width": 0.5}
    assert merged["train"] == {"epochs": 2}
    assert "by_data" not in merged
    assert "x" not in merged


def test_fields_by_data_of_another_form_are_refused():
    with pytest.raises(InputError, match="`by_data` must be a section of data sets"):
        apply_data_overrides({"by_data": {"digits": 5}})


def test_a_name_through_a_field_that_is_no_section_is_refused():
    with pytest.raises(InputError, match=r"cannot set `train.lr.x`: `lr` is not a section with fields"):
        set_field({"train": {"lr": 0.1}}, "train.lr.x", 1)
