"""Which settings are repeated, and which may stand on the front then."""

import pytest

from sweeps.records.events import Role, Status
from sweeps.records.fronts import competing_points, decidable_difference, front, front_settings, model_trials
from sweeps.records.model import StudyRecord, TrialRecord
from tests.support.specifications import make_specification


def record(point: str, seed: int, error: float, size: int = 100, status: Status = Status.COMPLETED) -> TrialRecord:
    return TrialRecord(
        trial_id=f"{point}{seed}", role=Role.REPEAT if seed else Role.SEARCH, status=status, point_id=point,
        specification=make_specification(seed=seed), parameters={"point": point}, counts={"params": size},
        epochs={1: {"val_error": error}},
    )  # fmt: skip


def study_of(*trials: TrialRecord) -> StudyRecord:
    return StudyRecord(trials={trial.trial_id: trial for trial in trials})


def names(points) -> list[str]:
    return [seeds[0].point_id for seeds in points]


def test_a_lucky_single_run_does_not_compete_with_means_of_three_seeds():
    repeated = [record("a", seed, error) for seed, error in enumerate((4.0, 5.5, 5.5))]
    assert names(front([*repeated, record("b", 0, 4.8)])) == ["a"]


def test_all_compete_while_the_front_still_waits_for_a_seed():
    trials = [record("a", 0, 4.0), record("a", 1, 5.5), record("b", 0, 4.5, 50), record("c", 0, 4.6)]
    assert names(competing_points(trials)) == ["a", "b", "c"]
    assert names(competing_points([*trials, record("b", 1, 4.5, 50)])) == ["a", "b"]


def test_a_point_that_lost_a_seed_does_not_stand_on_the_final_front():
    trials = [
        record("a", 0, 4.0), record("a", 1, 4.2),
        record("b", 0, 3.0, 200), record("b", 1, 90.0, 200, Status.DIVERGED),
    ]  # fmt: skip
    assert names(front(trials)) == ["a"]


def test_repeating_goes_on_until_the_front_stands_still():
    study = study_of(record("a", 0, 4.0), record("b", 0, 4.5), record("c", 0, 9.0))
    assert front_settings(study, 2, 10) == [{"point": "a"}]
    study.trials["a1"] = record("a", 1, 6.0)  # its mean is now above the error of b
    assert front_settings(study, 2, 10) == [{"point": "a"}, {"point": "b"}]
    study.trials["b1"] = record("b", 1, 4.5)
    assert front_settings(study, 2, 10) == [{"point": "a"}, {"point": "b"}]  # c is no better than b
    assert names(front(study.trials.values())) == ["b"]


def test_repeating_ends_when_its_share_is_spent():
    study = study_of(record("a", 0, 4.0), record("b", 0, 4.5), record("a", 1, 6.0))
    assert front_settings(study, 2, 0) == [{"point": "a"}]
    assert front_settings(study, 2, 1) == [{"point": "a"}, {"point": "b"}]


def test_more_images_and_seeds_decide_smaller_differences():
    one = decidable_difference(288, 1, 4.0)
    assert 2.5 < one < 3.3
    assert decidable_difference(2000, 3, 4.0) == pytest.approx(0.845, abs=0.001)  # 2.486 sqrt(0.2 / sqrt(3))
    assert decidable_difference(10**9, 3, 4.0, seed_deviation=0.5) > 0.5


def test_the_first_seed_of_each_point_of_the_front_and_of_each_reference_is_written_as_a_model():
    trials = [record("a", 0, 4.0), record("b", 0, 9.0, 200), *(record("dense", seed, 3.0, 500) for seed in (0, 1))]
    for trial in trials[2:]:
        trial.role = Role.REFERENCE
    trials += [record("thin", 0, 5.0, 50, Status.DIVERGED)]
    trials[-1].role = Role.REFERENCE
    assert [trial.trial_id for trial in model_trials(trials)] == ["a0", "dense0"]
