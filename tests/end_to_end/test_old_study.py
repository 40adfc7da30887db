"""A study written by the code of commit 2ff6b06 is read, reported, resumed and exported by today's code.

`tests/data/README.md` says what the study holds and which commands wrote it.
"""

from __future__ import annotations

import csv
import importlib
import json
import sqlite3
import tarfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from analysis.__main__ import main
from analysis.sources import load_from_mlflow
from lowrank.data import DataSettings, load_data
from lowrank.io import load_tensors
from sweeps.records import (
    CHECKPOINT_FILE,
    EPOCHS_FILE,
    JOURNAL_FILE,
    MLFLOW_FILE,
    MODELS_FOLDER,
    RESULTS_FILE,
    SUMMARY_TABLE,
    TRACKING_PROGRESS_FILE,
    TRIALS_FOLDER,
    Event,
    Status,
    epochs_to_table,
    front_first_seeds,
    identify,
    load_study,
    model_trials,
    results_to_table,
)
from tests.support import studies
from tests.support.journals import read_events
from tests.support.mlflow_store import epoch_metrics, journal_metrics, parent_status, rows, trial_runs

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "study_2ff6b06.tar.gz"
NAME = "old_study"
WRITTEN_IN = "/srv/studies"  # the folder of studies where it was written
REFERENCE, SMALL, BROKEN, LARGE = FINISHED = "eb95c4684fd5", "61319e638aa3", "a174f61699c8", "9a50b22f2f11"
UNFINISHED = "baf08205dda5"
VAL_ERRORS = {REFERENCE: 22.22, SMALL: 50.69, BROKEN: 52.78, LARGE: 24.31, UNFINISHED: 87.5}  # as the old code printed
TEST_ERRORS = {REFERENCE: 21.17, SMALL: 54.87}
ONE_IMAGE = 100 / 288  # of the validation split, in per cent: another processor may round one image's logits otherwise
EPOCHS = 3
ONLY_IN_JOURNALS: dict[str, Any] = {"test_looks": [], "finished_ends": []}  # which the old copies lack
# Every column of MLflow's tables that holds an absolute address of the study
ADDRESSES = {
    "experiments": ("artifact_location",), "runs": ("artifact_uri",), "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}  # fmt: skip


def unpack_study(root: Path) -> Path:
    """Unpack the study into a folder of studies and return its own folder.

    MLflow and the tracker store absolute addresses, so these are made those of the new place.
    """
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    folder = root / NAME
    progress = folder / TRACKING_PROGRESS_FILE
    progress.write_text(progress.read_text().replace(WRITTEN_IN, str(root)))
    with closing(sqlite3.connect(folder / MLFLOW_FILE)) as connection, connection:
        for table, column in [(table, column) for table, columns in ADDRESSES.items() for column in columns]:
            connection.execute(f"update {table} set {column} = replace({column}, ?, ?)", (WRITTEN_IN, str(root)))
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def count_events(folder: Path, kind: Event) -> Counter[str]:
    """How many events of a kind the journal holds of each trial."""
    return Counter(event["trial"] for event in read_events(folder / JOURNAL_FILE) if event["event"] == kind)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """The study as it was written; no test changes it."""
    return unpack_study(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """The study after today's command has gone on with it to its end."""
    folder = unpack_study(tmp_path_factory.mktemp("resumed"))
    completed = studies.run("--resume", NAME, "--out", str(folder.parent))
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return folder


def test_the_archive_names_no_folder_of_the_machine_that_wrote_it() -> None:
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member).read() if member.isfile() else b""
            for folder in (b"/home/", b"/root/", b"/tmp/", b"/work/"):
                assert folder not in content, member.name


class TestRecords:
    def test_the_journal_holds_each_trial_with_its_status_and_error(self, stored):
        study = load_study(stored)
        statuses = {trial_id: trial.status for trial_id, trial in study.trials.items()}
        assert statuses == dict.fromkeys(FINISHED, Status.COMPLETED) | {UNFINISHED: Status.RUNNING}
        errors = {trial_id: round(trial.val_error, 2) for trial_id, trial in study.trials.items()}
        assert errors == VAL_ERRORS
        tested = {trial_id: trial.test_error for trial_id, trial in study.trials.items() if trial.test_error}
        assert tested == pytest.approx(TEST_ERRORS, abs=0.01)
        assert study.trials[BROKEN].broken == "trained with the wrong decay"
        assert study.trials[SMALL].notes == ["looks sound"]
        assert study.notes == ["written at 2ff6b06"]
        assert study.tags == {"team": "vision"}

    def test_every_id_computed_anew_is_the_same(self, stored):
        study = load_study(stored)
        for trial in study.trials.values():
            header = study.header.data
            ids = identify(trial.specification, header.image_shape, header.classes)
            assert ids == (trial.trial_id, trial.point_id)

    def test_the_tables_hold_the_same_study_as_the_journal(self, stored, tmp_path):
        for name in (RESULTS_FILE, EPOCHS_FILE):
            (tmp_path / name).write_bytes((stored / name).read_bytes())
        assert load_study(tmp_path) == replace(load_study(stored), **ONLY_IN_JOURNALS)

    def test_tables_written_anew_have_the_same_columns_and_values(self, stored):
        study = load_study(stored)
        for name, table in ((RESULTS_FILE, results_to_table(study)), (EPOCHS_FILE, epochs_to_table(study))):
            old = pq.read_table(stored / name)
            assert table.select(old.column_names).to_pylist() == old.to_pylist()

    @pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
    def test_the_mlflow_store_holds_the_same_study_as_the_journal(self, stored):
        expected = replace(load_study(stored), **ONLY_IN_JOURNALS)
        assert load_from_mlflow(f"sqlite:///{stored / MLFLOW_FILE}", NAME) == expected


class TestAnalysis:
    def test_the_summary_is_the_stored_one(self, tmp_path, capsys):
        folder = unpack_study(tmp_path)
        (folder / TRACKING_PROGRESS_FILE).unlink()  # so that the summary is not sent to MLflow, which takes a process
        stored = read_csv(folder / SUMMARY_TABLE)
        (folder / SUMMARY_TABLE).unlink()
        assert main(["summary", str(folder)]) == 0
        written = read_csv(folder / SUMMARY_TABLE)  # new columns may be among them
        assert [{name: row[name] for name in old} for row, old in zip(written, stored, strict=True)] == stored
        assert {row["trial_id"] for row in stored} == {REFERENCE, SMALL, LARGE, UNFINISHED}
        assert "Tucker, 3 dims, rank scale 0.34, 5,587 parameters: 50.7 %" in " ".join(capsys.readouterr().out.split())

    def test_a_report_is_written(self, stored, tmp_path):
        assert main(["report", "--study", str(stored), "--out", str(tmp_path / "report")]) == 0
        page = (tmp_path / "report" / "report.html").read_text()
        for trial_id in (REFERENCE, SMALL, LARGE):
            assert trial_id[:6] in page


def test_the_registered_model_answers_raw_images_as_it_was_trained_to(stored):
    (folder,) = (path.parent for path in stored.glob("mlflow_artifacts/models/*/artifacts/MLmodel"))
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    classifier = importlib.import_module(flavor["loader_module"])._load_pyfunc(str(folder / flavor["data"]))
    val = load_data(DataSettings(name="digits")).val
    images = val.decode(torch.arange(len(val))).permute(0, 3, 1, 2).numpy()
    wrong = classifier.predict(images).argmax(1) != val.labels.numpy()
    assert 100 * wrong.mean() == pytest.approx(VAL_ERRORS[SMALL], abs=ONE_IMAGE + 0.01)


@pytest.mark.slow  # torch.export and ONNX take half a minute
def test_a_trial_is_exported_with_equal_outputs(stored, tmp_path, monkeypatch):
    from lowrank.deployment import measure_latency

    monkeypatch.setattr("analysis.model_export.trial_export.measure_latency", partial(measure_latency, seconds=0.0))
    assert main(["export", "--study", str(stored), "--trial", LARGE, "--out", str(tmp_path / "out")]) == 0
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["trial_id"] == LARGE
    assert proof["equal"] is True
    for form in proof["forms"]:
        assert form["error"] == pytest.approx(VAL_ERRORS[LARGE], abs=ONE_IMAGE + 0.01)


@pytest.mark.study
class TestResume:
    def test_the_study_is_finished(self, resumed):
        study = load_study(resumed)
        assert study.closed["reason"] == "finished"
        assert len(study.trials) == 6  # the reference, four that count, and the broken one, which counts for nothing
        for trial in study.trials.values():
            assert trial.status in (Status.COMPLETED, Status.STOPPED)
            assert list(trial.epochs) == list(range(1, trial.last_epoch + 1))

    def test_finished_trials_are_not_trained_again(self, stored, resumed):
        old, new = load_study(stored), load_study(resumed)
        for kind in (Event.ATTEMPT, Event.FINISHED):
            counts = count_events(resumed, kind)
            assert {trial_id: counts[trial_id] for trial_id in FINISHED} == dict.fromkeys(FINISHED, 1)
        for trial_id in FINISHED:
            assert new.trials[trial_id].epochs == old.trials[trial_id].epochs

    def test_the_unfinished_trial_goes_on_from_its_checkpoint(self, stored, resumed):
        tensors, _ = load_tensors(stored / TRIALS_FOLDER / UNFINISHED / CHECKPOINT_FILE)
        attempts = load_study(resumed).trials[UNFINISHED].attempts
        assert [attempt["from_epoch"] for attempt in attempts] == [0, int(tensors["epoch"])]
        assert count_events(resumed, Event.EPOCH)[UNFINISHED] == EPOCHS

    def test_the_broken_trial_stays_out_of_the_front(self, resumed):
        trials = load_study(resumed).trials.values()
        assert BROKEN not in {trial.trial_id for trial in front_first_seeds(trials)}
        models = {trial.trial_id for trial in model_trials(trials)}
        assert {path.parent.name for path in resumed.glob(f"{MODELS_FOLDER}/*/model.safetensors")} == models

    def test_mlflow_goes_on_in_the_same_runs(self, stored, resumed):
        query = "select t.value, r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'trial_id'"
        before, after = (dict(rows(folder / MLFLOW_FILE, query)) for folder in (stored, resumed))
        assert before.items() <= after.items()
        statuses = {trial_id: ["FINISHED"] for trial_id in load_study(resumed).trials}
        assert trial_runs(resumed / MLFLOW_FILE) == statuses | {BROKEN: ["FAILED"]}
        assert parent_status(resumed / MLFLOW_FILE) == ["FINISHED"]

    def test_each_model_of_the_front_is_registered_once(self, resumed):
        front = {trial.trial_id for trial in front_first_seeds(load_study(resumed).trials.values())}
        versions = rows(resumed / MLFLOW_FILE, "select value from model_version_tags where key = 'trial_id'")
        assert sorted(trial_id for (trial_id,) in versions) == sorted(front | {SMALL})  # the old code registered one

    def test_mlflow_holds_each_metric_of_each_epoch_once(self, resumed):
        metrics: Counter[tuple[Any, ...]] = epoch_metrics(resumed / MLFLOW_FILE)
        of_epochs = {key: times for key, times in metrics.items() if key[1] != "test_error"}  # tested after training
        assert of_epochs == journal_metrics(resumed)
