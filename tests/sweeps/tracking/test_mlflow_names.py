from __future__ import annotations

import pytest

from lowrank.errors import InputError
from sweeps.records.annotations import RESERVED_TAGS, check_note, parse_tags
from sweeps.records.events import Event
from sweeps.records.fronts import best_trials
from sweeps.records.load import fold_journal
from sweeps.records.mlflow_names import (
    metric_name,
    point_name,
    run_name,
    run_params,
    size_metrics,
    study_metrics,
    study_tags,
    trial_tags,
)
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import JOURNAL_FILE
from tests.support.journals import fold_events
from tests.support.specifications import change, make_specification
from tests.support.synthetic_study import Plan, write_study


def trial(**changes) -> TrialRecord:
    fields = {
        "trial_id": "0123456789abcdef", "parameters": {"budget.params": 0.2, "method.dims": 3},
        "specification": make_specification(
            method={"name": "tensor_train", "dims": 3, "rank_scale": 0.25},
            train={"scaled_decay": True, "clip_norm": None, "milestones": [0.5], "lr": 1 / 3},
        ),
        "counts": {"params": 85_296, "mult_adds": 2_770_000, "separable_params": 170_592},
    }  # fmt: skip
    return TrialRecord(**{**fields, **changes})


@pytest.fixture
def study(tmp_path) -> StudyRecord:
    return fold_journal(write_study(tmp_path, Plan(trials=16)) / JOURNAL_FILE)


def test_a_run_is_named_by_what_it_is():
    assert run_name(trial()) == "tensor_train 3d 85.3k 012345"
    reference = make_specification(method={"name": "separable"})
    assert run_name(trial(specification=reference)) == "separable 85.3k 012345"


def test_trials_that_differ_in_the_seed_alone_are_one_point():
    first = trial()
    other_seed = trial(trial_id="f" * 16, specification=change(first.specification, seed=7))
    other_shape = trial(specification=change(first.specification, method={"dims": 4}))
    assert point_name(first) == point_name(other_seed)
    assert point_name(first) != point_name(other_shape)
    assert trial_tags(StudyRecord(), first)["point"] == point_name(first)


def test_parameters_bear_the_names_and_the_spelling_of_the_space_file():
    assert run_params(trial(stratum="s")) == {
        "budget.params": "0.2", "data.fingerprint": "f00d", "data.name": "digits",
        "network.name": "resnet9", "method.dims": "3", "method.name": "tensor_train", "method.rank_scale": "0.25",
        "mult_adds": "2770000", "params": "85296", "separable_params": "170592", "seed": "0",
        "stratum": "s", "train.lr": "0.333333", "train.milestones": "[0.5]", "train.scaled_decay": "true",
    }  # fmt: skip


def test_sizes_are_metrics_with_their_share():
    assert size_metrics(trial()) == {"params": 85_296.0, "mult_adds": 2_770_000.0, "params_over_separable": 0.5}
    assert size_metrics(trial(counts={})) == {}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("val_error", "val_error"),
        ("grad_norm.layer1.conv", "grad_norm/layer1.conv"),
        ("device_utilisation", "system/gpu_0_utilization_percentage"),
        ("host_memory_mb", "system/system_memory_usage_megabytes"),
    ],
)
def test_metrics_are_shown_in_sections(ours, theirs):
    assert metric_name(ours) == theirs


def test_every_trial_can_be_filtered_by_whether_it_is_broken():
    assert trial_tags(StudyRecord(), trial())["broken"] == "no"
    tags = trial_tags(StudyRecord(tags={"team": "vision"}), trial(broken="disk full", notes=["looked odd"]))
    assert tags["broken"] == "disk full"
    assert tags["mlflow.note.content"] == "Marked broken: disk full\n\nlooked odd"
    assert tags["team"] == "vision"


def test_no_tag_of_the_user_can_hide_one_of_ours(study):
    first = next(iter(study.trials.values()))
    ours = {*trial_tags(study, first), *study_tags(study)}
    assert {name for name in ours if not name.startswith("mlflow.")} <= RESERVED_TAGS
    with pytest.raises(InputError, match="the tag 'broken' is reserved"):
        parse_tags(["broken=no"])


@pytest.mark.parametrize("pair", ["team", "team=", "=vision", "mlflow.user=me", "a b=c", "k=" + "v" * 3000])
def test_a_tag_that_is_none_is_one_line(pair):
    with pytest.raises(InputError, match="a tag must read K=V"):
        parse_tags([pair])


def test_notes_and_tags_as_typed():
    assert parse_tags(["team=vision", "why=a=b"]) == {"team": "vision", "why": "a=b"}
    assert check_note(" first try ") == "first try"
    assert check_note(None) == ""
    with pytest.raises(InputError, match="a note must have 1 to 2,000 characters, but got 0"):
        check_note(" ")


def test_notes_add_up_and_repeat_nothing():
    noted = {"event": str(Event.ANNOTATED), "time": 1.0, "note": "one", "tags": {"a": "1"}}
    found = fold_events(
        [noted, noted, {**noted, "note": "two", "tags": {"a": "2"}}, {**noted, "note": "", "tags": {"b": "3"}}]
    )
    assert found.notes == ["one", "two"]
    assert found.tags == {"a": "2", "b": "3"}
    assert study_tags(found)["mlflow.note.content"] == "\n\none\n\ntwo"
    assert fold_events([{**noted, "trial": "t"}]).trials["t"].notes == ["one"]


def test_the_summary_is_of_sound_trials_of_the_search(study):
    before = study_metrics(study)
    best = best_trials(study)["best"]
    assert before["study/best_val_error"] == best.val_error
    best.broken = "why"
    after = study_metrics(study)
    assert after["study/trials_broken"] == 1
    assert after["study/trials_completed"] == before["study/trials_completed"] - 1
    assert best_trials(study)["best"] is not best


def test_the_best_under_each_limit_fits(study):
    found = best_trials(study)
    assert {"best", "best-under-60480", "best-under-151000", "best-under-302000"} == set(found)
    for name, chosen in found.items():
        assert name == "best" or chosen.counts["params"] <= int(name.rpartition("-")[2])
