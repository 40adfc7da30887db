from __future__ import annotations

import dataclasses
import random
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.findings.study_answers.answer import answer_text, answers
from analysis.reporting.summary_table import describe_missing_seeds
from analysis.stats.front import (
    FrontPoint,
    Stratum,
    best_by_method,
    best_point,
    collect_points,
    find_reference,
    pareto_front,
    references,
    study_strata,
    validation_images,
)
from analysis.stats.inference.intervals import wilson_interval
from analysis.utils.formatting import data_label
from lowrank.errors import InputError
from sweeps.records import fronts
from sweeps.records.events import Role, Status
from sweeps.records.fronts import mean_error
from sweeps.records.header import StudyHeader
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import RESULTS_FILE
from tests.support import synthetic_data
from tests.support.specifications import change, make_specification
from tests.support.synthetic_study import BUDGETS, SEPARABLE, Plan, write_study


def answered(made):
    return answers(made, collect_points(made))


def answer_of(made):
    return answer_text(made, collect_points(made))


def point(name, params, error, *, method="cp", status=Status.COMPLETED, role=Role.SEARCH, stratum="s", **more):
    return FrontPoint(
        trial_id=name, params=params, val_error=error, method=method, status=status, role=role, stratum=stratum, **more
    )


def record(name, params, error, *, status=Status.COMPLETED, role=Role.SEARCH, method="cp", seed=0, epochs=2):
    return TrialRecord(
        trial_id=name, role=role, status=status, stratum="any size",
        counts={"params": params, "separable_params": 1000},
        specification=make_specification(method={"name": method, "dims": 2, "params": params}, seed=seed),
        epochs={epochs: {"val_error": error}} if error is not None else {},
    )  # fmt: skip


def study_of(*trials, **header):
    return StudyRecord(
        header=StudyHeader.parse({"name": "x", **header}), trials={trial.trial_id: trial for trial in trials}
    )


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path, Plan(trials=40)))


class TestFront:
    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.COMPLETED}))
    def test_only_what_trained_to_its_end_is_eligible(self, status):
        points = [point("a", 10, 5.0), point("b", 5, 1.0, status=status)]
        assert [p.trial_id for p in pareto_front(points)] == ["a"]
        assert best_point(points).trial_id == "a"

    def test_references_are_not_on_the_front(self):
        points = [point("a", 10, 5.0), point("b", 5, 1.0, role=Role.REFERENCE)]
        assert [p.trial_id for p in pareto_front(points)] == ["a"]
        assert [p.trial_id for p in references(points)] == ["b"]

    def test_it_falls_from_left_to_right(self, study):
        kept = pareto_front(collect_points(study))
        assert len(kept) > 2
        assert all(a.params < b.params and a.error > b.error for a, b in pairwise(kept))

    def test_of_equal_errors_the_smallest_is_best(self):
        assert best_point([point("a", 20, 5.0), point("b", 10, 5.0)]).trial_id == "b"

    def test_nothing_completed_nothing_chosen(self):
        points = [point("a", 20, None, status=Status.RUNNING)]
        assert pareto_front(points) == []
        assert best_point(points) is None
        assert best_by_method(points) == []

    def test_best_of_each_method_best_first(self):
        points = [point("a", 1, 5.0), point("b", 1, 4.0), point("c", 1, 3.0, method="tucker")]
        assert [p.trial_id for p in best_by_method(points)] == ["c", "b"]

    def test_an_error_that_is_not_there_is_not_a_number(self):
        with pytest.raises(ValueError, match="trial a has no validation error: it is running"):
            _ = point("a", 1, None, status=Status.RUNNING).error


class TestCollect:
    def test_every_trial_of_known_size_and_no_infeasible(self, study):
        points = collect_points(study)
        assert {p.trial_id for p in points} == {
            t.trial_id for t in study.trials.values() if t.status is not Status.INFEASIBLE
        }
        assert [p.params for p in points] == sorted(p.params for p in points)

    def test_the_share_of_the_separable_network(self, study):
        for p in collect_points(study):
            assert p.ratio == p.params / SEPARABLE

    def test_repeats_with_other_seeds_are_counted(self):
        study = study_of(record("a", 10, 5.0, seed=0), record("b", 10, 6.0, seed=1), record("c", 11, 6.0))
        assert {p.trial_id: p.seeds for p in collect_points(study)} == {"a": 2, "b": 2, "c": 1}

    def test_the_whole_reference_is_the_largest_of_its_name(self):
        points = [point(n, s, 1.0, method="separable", role=Role.REFERENCE) for n, s in (("thin", 5), ("whole", 10))]
        assert find_reference(points, "separable").trial_id == "whole"
        assert find_reference(points, "dense") is None

    def test_images_are_known_or_not(self):
        assert validation_images(study_of(data={"val_images": 360})) == 360
        assert validation_images(study_of()) is None


class TestStrata:
    def test_a_budget_holds_all_that_is_smaller(self):
        assert Stratum(label="s", params=10).holds(point("a", 10, 1.0, stratum="smaller"))
        assert not Stratum(label="s", params=10).holds(point("a", 11, 1.0, stratum="s"))

    def test_a_limit_known_by_its_label_holds_its_own(self):
        header = {"strata": [{"label": "mult-adds <= 5", "params": None}, {"label": "mult-adds <= 9", "params": None}]}
        low, high = study_strata(study_of(**header))
        assert low.holds(point("a", 1, 1.0, stratum="mult-adds <= 5"))
        assert not high.holds(point("a", 1, 1.0, stratum="mult-adds <= 5"))

    def test_smallest_first_and_the_unlimited_last(self, study):
        assert [stratum.params for stratum in study_strata(study)] == list(BUDGETS)
        assert study_strata(study)[-1].holds(point("a", 10**9, 1.0, stratum="another"))


class TestAnswer:
    def test_one_a_budget_each_the_best_that_fits(self, study):
        points = [p for p in collect_points(study) if p.eligible]
        found = answered(study)
        assert [answer.stratum.params for answer in found] == list(BUDGETS)
        for answer in found:
            fitting = [p for p in points if answer.stratum.params is None or p.params <= answer.stratum.params]
            assert answer.best.error == min(p.error for p in fitting)
            assert answer.candidates == len(fitting)
            low, high = wilson_interval(answer.best.error, 360)
            assert answer.interval[0] == pytest.approx(low, abs=0.05)  # whole images
            assert answer.interval[0] <= answer.best.error <= answer.corrected <= answer.interval[1]
            assert answer.interval[1] > high or answer.candidates == 1  # the choice is paid for

    def test_the_words(self):
        study = study_of(
            record("a", 50, 100 * 8 / 360),
            record("b", 60, 100 * 30 / 360, method="tucker"),
            record("s", 1000, 100 * 7 / 360, role=Role.REFERENCE, method="separable"),
            data={"val_images": 360},
            strata=[{"label": "params <= 80", "params": 80}],
        )
        assert answered(study)[0].text() == (
            "At up to 80 parameters (8 % of separable): CP, 2 dims, 50 parameters: 2.22 % validation error "
            "(n = 1 seed, 360 validation images; corrected for the choice 2.22 %, 95 % interval 1.1 to 4.3 %, "
            "from counts alone, best of 2 completed). "
            "Next best method, Tucker, 2 dims: 8.33 % at 60, 6.11 points higher (95 % interval +2.91 to +9.71, beyond "
            "noise); separable reference: 1.94 % at 1,000, 0.28 points lower (corrected for the choice +0.28, 95 % "
            "interval -2.09 to +2.65, within noise)."
        )
        assert (
            "“Within noise” and “beyond noise” are corrected for the choice of the best and the number of these "
            "comparisons, 2 (Holm)."
        ) in answer_of(study)
        assert "References: separable 1.94 % at 1,000 parameters." in answer_of(study)

    def test_the_share_is_of_the_network_that_the_budget_is_relative_to(self):
        trial = record("a", 50, 5.0)
        trial.counts["dense_params"] = 8000
        budgets = [{"label": "params <= 0.01 of dense", "params": 80}]
        for relative_to, share in (
            (None, "8 % of separable"),
            ("separable", "8 % of separable"),
            ("dense", "1 % of dense"),
        ):
            study = study_of(trial, strata=budgets, space={"budget": {"params": 0.01, "relative_to": relative_to}})
            assert answered(study)[0].text().startswith(f"At up to 80 parameters ({share}): CP")

    def test_a_thinner_network_within_the_budget_is_compared(self):
        study = study_of(
            record("a", 50, 5.0),
            record("thin", 60, 4.0, role=Role.REFERENCE, method="separable"),
            record("s", 1000, 2.0, role=Role.REFERENCE, method="separable"),
            data={"val_images": 100},
            strata=[{"label": "params <= 80", "params": 80}],
        )
        labels = [comparison.label for comparison in answered(study)[0].comparisons]
        assert labels == ["separable within the same budget", "separable reference"]

    def test_a_larger_budget_that_brings_nothing_says_so(self):
        budgets = [{"label": f"params <= {n}", "params": n} for n in (80, 90)]
        study = study_of(record("a", 50, 5.0), strata=budgets, data={"val_images": 10})
        assert "2 dims, 50 parameters: 5.00 %, as within the smaller budget (best of 1 completed)." in answer_of(study)

    def test_nothing_completed_is_said(self):
        study = study_of(record("a", 50, 5.0, status=Status.STOPPED))
        assert answer_of(study).splitlines() == [
            "Any size: no trial was completed.", "No reference network was trained to its end.",
        ]  # fmt: skip

    def test_sizes_at_which_nothing_was_tried_take_one_line(self):
        budgets = [{"label": f"params <= {n}", "params": n} for n in (10, 20, 40, 80)]
        tried = [record("a", 50, 5.0), record("b", 30, 5.0, status=Status.STOPPED)]
        tried[0].stratum, tried[1].stratum = "params <= 80", "params <= 40"
        first, second, third, *_ = answer_of(study_of(*tried, strata=budgets)).splitlines()
        assert first.startswith("At up to 80 parameters")
        assert second == "At up to 40 parameters (4 % of separable): no trial was completed."
        assert third == "Nothing was tried in 2 strata: params <= 10; params <= 20."
        for budget, reason in zip(budgets[:2], ("its smallest has 31", "its smallest has 30"), strict=True):
            budget["unreachable"] = reason
        third = answer_of(study_of(*tried, strata=budgets)).splitlines()[2]
        assert third == (
            "Nothing was tried in 2 strata: params <= 10; params <= 20, for no method can meet it: its smallest has 30."
        )

    def test_without_the_number_of_images_the_noise_is_unknown(self):
        study = study_of(record("a", 50, 5.0), record("b", 50, 6.0, method="tucker"))
        text = answer_of(study)
        assert "noise unknown" in text
        assert "Wilson" not in text

    def test_answers_are_frozen(self, study):
        with pytest.raises(dataclasses.FrozenInstanceError):
            answered(study)[0].best = None


@pytest.mark.parametrize(
    ("name", "label"),
    [("digits", "digits"), ("parquet:/data/flowers", "flowers"), ("folder:/data/cats/", "cats")],
)
def test_a_folder_of_images_is_named_by_its_last_part(name, label):
    assert data_label(name) == label


def test_a_setting_counts_by_the_mean_over_its_seeds_once():
    lucky, unlucky = record("a0", 100, 1.0), record("a1", 100, 9.0, role=Role.REPEAT, seed=1)
    steady, again = record("b0", 90, 4.0), record("b1", 90, 4.0, role=Role.REPEAT, seed=1)
    points = collect_points(study_of(lucky, steady, unlucky, again))
    assert [(each.trial_id, each.error, each.seeds) for each in pareto_front(points)] == [("b0", 4.0, 2)]
    found = best_point(points)
    assert found is not None
    assert found.trial_id == "b0"
    assert {each.trial_id: each.error for each in points}["a1"] == 5.0
    assert {each.trial_id: each.val_error for each in points}["a1"] == 9.0


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_the_one_that_the_search_repeats_and_keeps(seed):
    dice = random.Random(seed)
    trials = [
        record(f"t{n}", dice.choice((50, 100, 200)), float(dice.randint(1, 6)), seed=dice.randint(0, 2),
               role=dice.choice((Role.SEARCH, Role.REPEAT, Role.REFERENCE)), method=dice.choice(("cp", "tucker")))
        for n in range(30)
    ]  # fmt: skip
    trials[0].broken = "a wrong split"
    shown = [(point.trial_id, point.error) for point in pareto_front(collect_points(study_of(*trials)))]
    assert shown == [(seeds[0].trial_id, mean_error(seeds)) for seeds in fronts.front(trials)]


def test_an_old_table_is_one_line(tmp_path):
    pq.write_table(pa.table({"trial_id": ["a"], "study": ["s"]}), tmp_path / RESULTS_FILE)
    with pytest.raises(InputError, match="was written by another version: it has no role, stratum, status"):
        load_study(tmp_path)


def test_a_repeat_leads_where_the_first_seed_is_broken():
    first, second = record("a0", 100, 1.0), record("a1", 100, 9.0, role=Role.REPEAT, seed=1)
    first.broken = "a wrong split"
    (only,) = pareto_front(collect_points(study_of(first, second)))
    assert (only.trial_id, only.error, only.seeds) == ("a1", 9.0, 1)


def test_a_reference_of_several_seeds_is_one():
    once, twice = (
        record(f"r{s}", 1000, e, role=Role.REFERENCE, method="separable", seed=s) for s, e in ((0, 2), (1, 3))
    )
    (only,) = references(collect_points(study_of(once, twice)))
    assert only.error == 2.5


def test_a_taught_trial_is_told_from_its_twin():
    alone, taught = record("a", 100, 3.0), record("b", 100, 2.0)
    sections = {"teacher": {"name": "wise", "weights": "f00d"}, "allocation": {"by": "stage", "methods": {}}}
    taught.specification = change(taught.specification, **sections)
    names = {each.trial_id: each.name for each in collect_points(study_of(alone, taught))}
    assert names == {"a": "CP, 2 dims", "b": "CP, 2 dims, taught by wise, shared by stage"}


def test_a_seed_without_a_result_is_said_wherever_its_setting_stands():
    done = [record(f"a{seed}", 100, 4.0, seed=seed, role=Role.REPEAT) for seed in (1, 2)]
    lost = record("a0", 100, None, status=Status.DIVERGED)
    alone = record("b0", 200, None, status=Status.FAILED)
    found = study_of(lost, *done, alone, data={"val_images": 100})
    assert {each.trial_id: each.lost for each in collect_points(found)} == {
        "a0": "1 of 3 seeds diverged", "a1": "1 of 3 seeds diverged", "a2": "1 of 3 seeds diverged", "b0": "",
    }  # fmt: skip
    assert describe_missing_seeds(collect_points(found)) == ["CP, 2 dims, 100 parameters: 1 of 3 seeds diverged"]
    assert "(n = 2 seeds, 1 of 3 seeds diverged, " in answer_of(found)


def test_the_size_in_a_description_is_not_that_of_the_teacher():
    (point,) = collect_points(synthetic_data.study(synthetic_data.trial("a", 1000, 2.0)))
    assert point.description == "CP, 2 dims with 1,000 parameters (2.00 %)"
    taught = dataclasses.replace(point, extras=("taught by the trained network",))
    assert taught.description == "CP, 2 dims, taught by the trained network, with 1,000 parameters (2.00 %)"
