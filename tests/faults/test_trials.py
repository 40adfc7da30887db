"""Trials that go wrong end with a status and a reason; the study goes on."""

from __future__ import annotations

import pytest

from sweeps.records.events import Status
from tests.support import studies

pytestmark = [pytest.mark.faults, pytest.mark.study]


def test_a_diverging_trial_is_an_outcome_and_the_worker_stays(tmp_path):
    done = studies.run(
        *studies.TINY, "--set", "train.lr={choice: [0.1, 1.0e+12]}", "--set", "search.sampler=random",
        "--set", "search.stop=none", "--set", "resources.max_concurrent=1", "--out", str(tmp_path), "--name", "hot",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trials = studies.record(tmp_path / "hot").trials.values()
    diverged = [trial for trial in trials if trial.status is Status.DIVERGED]
    assert diverged, [trial.parameters for trial in trials]
    for trial in diverged:
        assert trial.parameters["train.lr"] == 1e12
        assert "loss" in trial.reason
        assert "epoch" in trial.reason
    assert {trial.status for trial in trials} <= {Status.DIVERGED, Status.COMPLETED}
    assert len({attempt["pid"] for trial in trials for attempt in trial.attempts}) == 1
    assert "diverged" in done.stdout
    kept = {path.parent.name for path in (tmp_path / "hot").glob("trials/*/*")}
    assert kept == {trial.trial_id for trial in trials if trial.status is Status.COMPLETED}


@pytest.mark.slow  # its last words and exit code: tests/sweeps/study/test_final_evaluation.py
def test_a_study_in_which_nothing_completes_says_why_and_fails(tmp_path):
    options = (*studies.TINY[:-1], "1", "--set", "references=[]", "--set", "train.lr=1.0e+30")
    done = studies.run(*options, "--out", str(tmp_path), "--name", "lost")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no trial was completed, so there is no front" in done.stdout
    assert "diverged: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
