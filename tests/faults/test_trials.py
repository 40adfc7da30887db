"""Trials that go wrong end with a status and a reason; the study goes on."""

from __future__ import annotations

import os
import signal

from sweeps.records import Status
from tests.support import studies


def test_a_diverging_trial_is_an_outcome_and_the_worker_stays(tmp_path):
    done = studies.run(
        *studies.TINY, "--set", "train.lr={choice: [0.1, 1.0e+12]}", "--set", "search.sampler=random",
        "--set", "search.stop=none", "--out", str(tmp_path), "--name", "hot",
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
    assert len({attempt["pid"] for trial in trials for attempt in trial.attempts}) <= 2
    assert "diverged" in done.stdout
    kept = {path.parent.name for path in (tmp_path / "hot").glob("trials/*/*")}
    assert kept == {trial.trial_id for trial in trials if trial.status is Status.COMPLETED}


def test_a_study_in_which_nothing_completes_says_why_and_fails(tmp_path):
    done = studies.run(*studies.TINY, "--set", "train.lr=1.0e+30", "--out", str(tmp_path), "--name", "lost")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no trial was completed, so there is no front" in done.stdout
    assert "diverged: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_killed_worker_costs_no_trial(tmp_path):
    """The trial is taken up again by a new process and ends once."""
    folder = tmp_path / "hit"
    process = studies.start(
        *studies.TINY, "--set", "train.epochs=40", "--set", "search.stop=none", "--out", str(tmp_path), "--name", "hit"
    )  # fmt: skip
    try:
        studies.wait_until(lambda: any(trial.last_epoch > 2 for trial in studies.record(folder).trials.values()))
        running = next(
            trial
            for trial in studies.record(folder).trials.values()
            if trial.status is Status.RUNNING and trial.last_epoch > 2
        )
        os.kill(running.attempts[-1]["pid"], signal.SIGKILL)
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == 0, said
    trials = studies.record(folder).trials
    assert len(trials) == 5
    assert {trial.status for trial in trials.values()} == {Status.COMPLETED}
    assert len(trials[running.trial_id].attempts) == 2
    assert all(list(trial.epochs) == list(range(1, 41)) for trial in trials.values())
