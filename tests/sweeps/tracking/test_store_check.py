"""A store that will not take a study is known before the study begins, and trouble later is said at once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.errors import InputError
from sweeps.records.names import MLFLOW_FILE, TRACKING_PROGRESS_FILE
from sweeps.tracking import process as process_module, store_check
from sweeps.tracking.__main__ import main
from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.mlflow_store import is_denial, make_client, outages, quiet_mlflow
from sweeps.tracking.process import TrackingProcess, check_study_store
from sweeps.tracking.store_check import check_store
from sweeps.tracking.uri import default_tracking_uri
from tests.support.mlflow_store import rows
from tests.support.synthetic_study import START, Plan, write_study

pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
ODD_NAMES = ["50% of $5 #1", 'it\'s {0} & "more"']


@pytest.fixture(scope="session", autouse=True)
def short_timeouts():
    quiet_mlflow()


@pytest.fixture
def uri(tmp_path, blank_store):
    """A store that several studies share."""
    shutil.copy(blank_store, tmp_path / "shared.db")
    return f"sqlite:///{tmp_path}/shared.db"


def test_a_store_without_the_experiment_has_nothing_to_say(tmp_path, uri):
    assert check_store(uri, tmp_path / "tt_dims") == []
    assert check_store(f"sqlite:///{tmp_path}/none.db", tmp_path / "tt_dims") == []
    assert not (tmp_path / "none.db").exists()


def test_an_experiment_that_was_deleted_is_refused_before_the_study(tmp_path, uri, capsys, monkeypatch):
    client = make_client(uri, tmp_path)
    client.delete_experiment(client.create_experiment("tt_dims"))
    message = r"the MLflow experiment 'tt_dims' in sqlite.* was deleted; restore it \(mlflow experiments restore -x 1\)"
    with pytest.raises(InputError, match=message):
        check_store(uri, tmp_path / "tt_dims")
    assert main([str(tmp_path / "tt_dims"), "--check", "--tracking-uri", uri]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_driver_asks_in_a_process_of_its_own(tmp_path, uri):
    client = make_client(uri, tmp_path)
    client.delete_experiment(client.create_experiment("tt_dims"))
    with pytest.raises(InputError, match=r"the MLflow experiment 'tt_dims' in .* was deleted; restore it"):
        check_study_store(tmp_path / "tt_dims", uri)
    assert check_study_store(tmp_path / "another", uri) == []


def test_what_the_process_says_reaches_the_user(tmp_path, monkeypatch):
    def answer(code: int, out: str = "", err: str = "") -> list[str]:
        ended = SimpleNamespace(returncode=code, stdout=out, stderr=err)
        monkeypatch.setattr(process_module.subprocess, "run", lambda *_, **__: ended)
        return check_study_store(tmp_path, "http://me:secret@host")

    assert answer(0) == []
    assert answer(0, "one other study\n") == ["one other study"]
    with pytest.raises(InputError, match=r"^it was deleted$"):
        answer(2, err="error: it was deleted\n")
    (line,) = answer(1, err="Traceback\nImportError: no mlflow\n")
    assert line == "whether http://me:***@host takes records is not known: ImportError: no mlflow"


def test_another_study_of_the_name_is_said_and_the_study_itself_is_not(tmp_path, uri):
    folder = write_study(tmp_path / "first" / "tt_dims", Plan(trials=2, epochs=1))
    assert catch_up(Follower(folder, uri)) is None
    assert check_store(uri, folder) == []
    (line,) = check_store(uri, tmp_path / "second" / "tt_dims")
    assert line.startswith("the MLflow experiment 'tt_dims' has 1 other study (begun 20")
    assert line.endswith("another --name keeps them apart")


def test_an_experiment_of_something_else_is_said(tmp_path, uri):
    client = make_client(uri, tmp_path)
    client.create_run(client.create_experiment("tt_dims"))
    (line,) = check_store(uri, tmp_path / "tt_dims")
    assert line == "the MLflow experiment 'tt_dims' has runs of something else; another --name keeps them apart"


@pytest.mark.parametrize(
    ("code", "refused"),
    [("PERMISSION_DENIED", True), ("UNAUTHENTICATED", True), ("TEMPORARILY_UNAVAILABLE", False),
     ("INTERNAL_ERROR", False)],
)  # fmt: skip
def test_a_store_that_lets_nobody_in_is_refused_and_one_that_is_away_is_not(tmp_path, uri, monkeypatch, code, refused):
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    error = MlflowException("who are you?", getattr(databricks_pb2, code))

    def fail(*_):
        raise error

    monkeypatch.setattr(store_check, "_experiment_lines", fail)
    assert isinstance(error, outages())
    assert is_denial(error) is refused
    if refused:
        with pytest.raises(InputError, match=r"the MLflow store sqlite.* refuses this user: .*who are you\?"):
            check_store(uri, tmp_path / "tt_dims")
    else:
        (line,) = check_store(uri, tmp_path / "tt_dims")
        assert line.endswith("does not answer now (who are you?); records wait in the journal")


def test_trouble_is_said_once_while_the_study_runs(tmp_path, monkeypatch):
    path = tmp_path / TRACKING_PROGRESS_FILE
    path.write_text(json.dumps({"error": "of an earlier run"}))
    os.utime(path, (START, START))
    now = [100.0]
    monkeypatch.setattr(process_module.time, "monotonic", lambda: now[0])
    tracking = TrackingProcess(SimpleNamespace(poll=lambda: None), tmp_path, "http://host")  # type: ignore[arg-type]

    def later() -> str | None:
        now[0] += process_module.REPORT_SECONDS
        return tracking.new_error()

    assert later() is None
    path.write_text(json.dumps({"error": "the experiment was deleted"}))
    assert tracking.new_error() is None  # not so soon
    assert later() == (
        "MLflow takes no records: the experiment was deleted; the study goes on, and they wait in the journal"
    )
    assert later() is None
    path.write_text(json.dumps({"error": ""}))
    assert later() is None
    path.write_text(json.dumps({"error": "the experiment was deleted"}))
    assert later() is None


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_database_lies_in_the_study_whatever_the_folder_above_it_is_called(tmp_path, blank_store, name):
    folder = write_study(tmp_path / name / "tt_dims", Plan(trials=2, epochs=1))
    shutil.copy(blank_store, folder / MLFLOW_FILE)
    uri = default_tracking_uri(folder)
    assert catch_up(Follower(folder, uri)) is None
    assert rows(folder / MLFLOW_FILE, "select count(*) from runs") == [(5,)]  # the study, two references and two trials
    assert [path.name for path in Path(tmp_path).iterdir()] == [name]
    artifacts = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"trial.json", "study.json"} <= artifacts


@pytest.mark.slow
def test_mlflow_makes_its_database_in_such_a_folder(tmp_path):
    folder = tmp_path / "100% #1 $x"
    folder.mkdir()
    make_client(default_tracking_uri(folder), folder)
    assert rows(folder / MLFLOW_FILE, "select count(*) from runs") == [(0,)]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
