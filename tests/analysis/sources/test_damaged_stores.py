"""An MLflow store with damaged or foreign content ends the reading in one line that names the store."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sweeps.records.mlflow_names as names
from analysis.__main__ import main
from analysis.sources.mlflow import load_from_mlflow
from lowrank.errors import InputError
from sweeps.records.names import EPOCHS_FILE, MLFLOW_FILE, RESULTS_FILE
from sweeps.tracking.follower import Follower, catch_up
from sweeps.tracking.uri import default_tracking_uri
from tests.support.synthetic_study import Plan, write_study

NAME = "tt_dims"
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy


@pytest.fixture(scope="module")
def stored(tmp_path_factory, blank_store) -> Path:
    """The folder of a study that MLflow holds."""
    folder = write_study(tmp_path_factory.mktemp("stored") / NAME, Plan(trials=3, epochs=2))
    shutil.copy(blank_store, folder / MLFLOW_FILE)
    assert catch_up(Follower(folder, default_tracking_uri(folder))) is None
    return folder


@pytest.fixture
def store(stored, tmp_path) -> Iterator[Path]:
    """The database to damage, a copy; its artifacts are restored afterwards."""
    copy = tmp_path / MLFLOW_FILE
    shutil.copy(stored / MLFLOW_FILE, copy)
    before = {path: path.read_bytes() for path in artifacts(stored, "*") if path.is_file()}
    yield copy
    for path, content in before.items():
        path.write_bytes(content)


def artifacts(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "mlflow_artifacts").rglob(name))


def uri(database: Path) -> str:
    return f"sqlite:///{database}"


def execute(database: Path, statement: str, *values: Any) -> int:
    """Run a statement on the database; returns how many rows it has changed."""
    connection = sqlite3.connect(database)
    with connection:
        count = connection.execute(statement, values).rowcount
    connection.close()
    return count


def read_single_runs(database: Path) -> None:
    """Make the tables out of date, so that each trial is read from its run."""
    assert execute(database, "update tags set value = ? where key = ?", names.BEHIND, names.TABLES_TAG) == 1


def check_refused(database: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_from_mlflow(uri(database), NAME)
    assert "\n" not in str(caught.value)


def test_the_store_is_read_as_long_as_it_is_whole(store):
    tables = load_from_mlflow(uri(store), NAME)
    read_single_runs(store)
    assert load_from_mlflow(uri(store), NAME).trials.keys() == tables.trials.keys()
    assert len(tables.trials) > 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"no database at all\n" * 500,
        lambda content: content[: len(content) // 2],
        lambda content: content[:8192] + bytes(len(content) - 8192),
    ],
    ids=["text", "cut short", "zeros"],
)
def test_a_database_that_is_damaged_is_one_line(store, damage):
    store.write_bytes(damage(store.read_bytes()))
    check_refused(store, r"the MLflow store .* cannot be read: |unknown study 'tt_dims'")


def test_a_command_says_it_in_one_line_too(store, tmp_path, capsys):
    read_single_runs(store)
    assert execute(store, "update tags set value = 'happy' where key = 'status'")
    arguments = ["report", "--study", NAME, "--tracking-uri", uri(store), "--out", str(tmp_path / "page")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "happy" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("name", [RESULTS_FILE, EPOCHS_FILE])
@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None], ids=["empty", "text", "deleted"])
def test_a_damaged_table_is_one_line(store, stored, name, content):
    (path,) = artifacts(stored, name)
    path.unlink() if content is None else path.write_bytes(content)
    check_refused(store, rf"the MLflow store .* cannot be read|{RESULTS_FILE} or {EPOCHS_FILE}.*STUDY_DIR --again")


def changed(**fields: Any) -> Callable[[Any], Any]:
    return lambda content: {**content, **fields}


def without(field: str) -> Callable[[Any], Any]:
    return lambda content: {name: value for name, value in content.items() if name != field}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (names.TRIAL_FILE, lambda content: [1, 2]),
        (names.TRIAL_FILE, without("status")),
        (names.TRIAL_FILE, without("trial_id")),
        (names.TRIAL_FILE, changed(role="king")),
        (names.TRIAL_FILE, changed(unheard=1)),
        (names.STUDY_FILE, lambda content: [1]),
        (names.STUDY_FILE, changed(unheard=1)),
        (names.STUDY_FILE, without("header")),
        (names.INFEASIBLE_FILE, lambda content: [5]),
        (names.INFEASIBLE_FILE, lambda content: 7),
        (names.INFEASIBLE_FILE, lambda content: [without("role")(entry) for entry in content]),
    ],
)
def test_a_record_that_is_no_record_is_one_line(store, stored, name, damage):
    read_single_runs(store)
    path = artifacts(stored, name)[0]
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    check_refused(store, "STUDY_DIR --again")


@pytest.mark.parametrize("name", [names.TRIAL_FILE, names.STUDY_FILE, names.INFEASIBLE_FILE])
@pytest.mark.parametrize("content", [b'{"half": ', b"\xff\xfe", b""], ids=["cut short", "no text", "empty"])
def test_a_file_that_is_no_json_is_named(store, stored, name, content):
    read_single_runs(store)
    artifacts(stored, name)[0].write_bytes(content)
    check_refused(store, rf"damaged \({name} of .*STUDY_DIR --again")


def test_a_trial_without_its_record_is_left_out_and_named(store, stored, capsys):
    read_single_runs(store)
    before = load_from_mlflow(uri(store), NAME)
    artifacts(stored, names.TRIAL_FILE)[0].unlink()
    study = load_from_mlflow(uri(store), NAME)
    assert len(study.trials) == len(before.trials) - 1
    assert f"left out, since the store does not have their {names.TRIAL_FILE}: " in capsys.readouterr().err
