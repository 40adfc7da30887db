"""What this project uses of MLflow beyond its documented API: a failure here says what an upgrade broke."""

from __future__ import annotations

import sqlite3

import pytest

from sweeps.tracking.mlflow_adapter import create_tables, delete_artifacts, is_database_error
from sweeps.tracking.mlflow_store import is_refusal, make_client, quiet_mlflow

quiet_mlflow()
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy


@pytest.fixture
def store(tmp_path, blank_store):
    """A client of a new store and a run in it."""
    database = tmp_path / "mlflow.db"
    database.write_bytes(blank_store.read_bytes())
    uri = f"sqlite:///{database}"
    client = make_client(uri, tmp_path)
    experiment = client.create_experiment("study", artifact_location=(tmp_path / "artifacts").as_uri())
    return client, uri, client.create_run(experiment)


def test_the_tables_are_made_and_nothing_holds_the_file(tmp_path):
    database = tmp_path / "mlflow.db"
    create_tables(database, (tmp_path / "artifacts").as_uri())
    with sqlite3.connect(database) as connection:
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    assert {"experiments", "runs", "metrics", "params", "tags"} <= tables
    database.rename(tmp_path / "moved.db")


def test_an_artifact_is_deleted(store):
    client, uri, run = store
    client.log_text(run.info.run_id, "x", "report/a.txt")
    client.log_text(run.info.run_id, "x", "report/b.txt")
    delete_artifacts(run.info.artifact_uri, uri, ["report/a.txt"])
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id, "report")] == ["report/b.txt"]


def test_a_failure_of_the_database_has_sqlalchemys_address_in_its_text(store):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST
    from sqlalchemy.exc import OperationalError

    text = str(OperationalError("insert", {}, Exception("database or disk is full")))
    assert is_database_error(text)
    assert not is_refusal(MlflowException(text, BAD_REQUEST))
    assert is_refusal(MlflowException("no such field", BAD_REQUEST))


def test_a_value_that_cannot_be_stored_is_refused(store):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    client, _, run = store
    with pytest.raises(MlflowException) as caught:
        client.log_param(run.info.run_id, "x" * 300, "1")
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert is_refusal(MlflowException("too long", INVALID_PARAMETER_VALUE))
