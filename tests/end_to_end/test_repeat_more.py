"""`--resume STUDY --repeat-more N` through the real command: more seeds for the front, and the search as it was."""

from __future__ import annotations

import pytest

from analysis.findings.study_answers.answer import answer_text
from analysis.stats.front import collect_points, pareto_front
from sweeps.records.events import Role
from tests.support import studies

pytestmark = [pytest.mark.study, pytest.mark.slow]


def searched(record):
    return {trial_id: trial.val_error for trial_id, trial in record.trials.items() if trial.role is Role.SEARCH}


def test_more_seeds_are_trained_for_the_front_alone_and_the_answer_counts_them(tmp_path):
    done = studies.run(*studies.TINY, "--out", str(tmp_path), "--name", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    before = studies.record(tmp_path / "tiny")
    done = studies.run("--resume", "tiny", "--repeat-more", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    after = studies.record(tmp_path / "tiny")
    assert searched(after) == searched(before)
    repeats = [trial for trial in after.trials.values() if trial.role is Role.REPEAT]
    assert repeats
    assert {trial.seed for trial in repeats} == {1}
    points = collect_points(after)
    front = pareto_front(points)
    assert {point.seeds for point in front} == {2}
    assert "n = 2 seeds" in answer_text(after, points)
    assert all(trial.wrong_images["val"] for trial in repeats)  # the new seeds are compared on the same images
    assert "test split: looked at once" in done.stdout  # the resume took no second look
