"""One real study through the real command: every room at once, on real images."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.findings.time_profile import CLOSING, DRIVER, REPORTS, SET_UP, STEP, VALIDATION, WORKERS, profile_study
from sweeps.records.events import Status
from sweeps.records.fronts import front_first_seeds
from tests.support import studies
from tests.support.mlflow_store import epoch_metrics, journal_metrics, parent_status, rows, trial_runs

pytestmark = pytest.mark.study


def of_epochs(database: Path) -> Counter[tuple]:
    """What the store holds of epochs; the test error is logged at the last epoch's step, beside them."""
    return Counter({key: times for key, times in epoch_metrics(database).items() if key[1] != "test_error"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("studies")
    about = ("--note", "a first look", "--tag", "team=vision")
    with pytest.MonkeyPatch.context() as around:
        around.setenv("RAY_ADDRESS", "127.0.0.1:9")  # somebody's cluster, which --address did not ask for
        done = studies.run(*studies.TINY, *about, "--out", str(out), "--name", "tiny", "--profile")
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "tiny", done.stdout


def test_every_trial_has_an_end_and_its_epochs(finished):
    folder, _ = finished
    record = studies.record(folder)
    assert len(record.trials) == 5
    assert record.closed is not None
    assert record.closed["reason"] == "finished"
    for trial in record.trials.values():
        assert trial.status in (Status.COMPLETED, Status.STOPPED)
        assert list(trial.epochs) == list(range(1, trial.last_epoch + 1))


def test_the_header_says_how_it_came_about(finished):
    folder, _ = finished
    header = studies.record(folder).header
    assert header.data.name == "digits"
    assert len(header.data.fingerprint) == 16
    assert {"torch", "ray", "optuna", "mlflow"} <= set(header.versions)
    assert header.seed == 0


def test_workers_stay_warm(finished):
    folder, _ = finished
    trials = studies.record(folder).trials.values()
    processes = [attempt["pid"] for trial in trials for attempt in trial.attempts]
    assert len(set(processes)) < len(processes)


def test_every_second_of_every_slot_is_accounted_for(finished):
    folder, said = finished
    found = profile_study(studies.record(folder))
    assert found is not None
    (run,) = found.runs
    assert run.began < run.prepared < run.trained < run.ended
    assert math.fsum(found.seconds.values()) == pytest.approx(run.slots * (run.ended - run.began))
    spent_on = {part for part, seconds in found.seconds.items() if seconds > 0}
    assert {DRIVER, WORKERS, SET_UP, STEP, VALIDATION, REPORTS, CLOSING} <= spent_on
    assert min(found.seconds.values()) >= 0
    assert "\nwhere the time went: " in said


def test_the_table_holds_each_trial_once_with_exact_counts(finished):
    folder, _ = finished
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    record = studies.record(folder)
    assert [row["trial_id"] for row in rows] == list(record.trials)
    for row in rows:
        assert row["params"] == record.trials[row["trial_id"]].counts["params"]
        assert 0 <= row["val_error"] <= 100
    epochs = pq.read_table(folder / "epochs.parquet")
    assert epochs.num_rows == sum(trial.last_epoch for trial in record.trials.values())


def test_mlflow_holds_the_parent_and_each_trial_once(finished):
    folder, _ = finished
    database = folder / "mlflow.db"
    assert parent_status(database) == ["FINISHED"]
    assert trial_runs(database) == {name: ["FINISHED"] for name in studies.record(folder).trials}
    assert of_epochs(database) == journal_metrics(folder)


def test_notes_tags_and_the_data_set_are_in_mlflow(finished):
    folder, _ = finished
    database = folder / "mlflow.db"
    runs = len(studies.record(folder).trials) + 1
    assert rows(database, "select count(*) from tags where key = 'team' and value = 'vision'") == [(runs,)]
    found = rows(database, "select value from tags where key = 'mlflow.note.content' and value like '%a first look'")
    assert len(found) == 1
    header = studies.record(folder).header.data
    assert rows(database, "select name, digest from datasets") == [("digits", header.fingerprint)]
    assert rows(database, "select count(*) from inputs where source_type = 'DATASET'") == [(runs,)]


def test_the_front_is_in_the_registry(finished):
    folder, _ = finished
    trials = studies.record(folder).trials.values()
    front = {trial.trial_id for trial in front_first_seeds(trials)}
    references = {trial.trial_id for trial in trials if trial.role == "reference"}
    assert {path.parent.name for path in folder.glob("models/*/model.safetensors")} == front | references
    found = rows(folder / "mlflow.db", "select value from model_version_tags where key = 'trial_id'")
    assert {trial for (trial,) in found} == front
    assert ("best",) in rows(folder / "mlflow.db", "select alias from registered_model_aliases")


def test_the_front_is_drawn_tested_and_put_into_words(finished):
    folder, said = finished
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "summary.csv").exists()
    assert "validation error" in said
    tested = [trial for trial in studies.record(folder).trials.values() if trial.test_error is not None]
    assert any(trial.role == "reference" for trial in tested)
    assert all(trial.status is Status.COMPLETED for trial in tested)


def test_nothing_of_ray_is_left_in_the_study(finished):
    folder, _ = finished
    assert not (folder / "ray").exists()
    kept = {path.parent.name for path in folder.glob("trials/*/checkpoint.safetensors")}
    completed = {name for name, trial in studies.record(folder).trials.items() if trial.status is Status.COMPLETED}
    assert kept == completed


def test_a_second_study_of_that_name_is_refused(finished):
    folder, _ = finished
    before = (folder / "journal.jsonl").read_bytes()
    done = studies.run(*studies.TINY, "--out", str(folder.parent), "--name", "tiny")
    assert done.returncode == 2
    assert "--resume tiny continues it" in done.stderr
    assert (folder / "journal.jsonl").read_bytes() == before


@pytest.mark.slow  # test_old_study resumes a study in every run
def test_resume_goes_on_in_the_same_runs_with_more_trials(finished):
    folder, _ = finished
    before = set(studies.record(folder).trials)
    done = studies.run("--resume", "tiny", "--out", str(folder.parent), "--trials", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    record = studies.record(folder)
    assert len(record.trials) == 7
    assert before < set(record.trials)
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    ends = [event["trial"] for event in events if event["event"] == "finished"]
    assert len(ends) == len(set(ends)) == 7
    assert trial_runs(folder / "mlflow.db") == {name: ["FINISHED"] for name in record.trials}
    assert of_epochs(folder / "mlflow.db") == journal_metrics(folder)
