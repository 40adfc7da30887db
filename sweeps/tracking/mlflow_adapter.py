"""The parts of MLflow beyond its documented API that this project touches, in one place.

`tests/sweeps/tracking/test_mlflow_adapter.py` says what an upgrade broke. MLflow is imported within functions, after
`sweeps.tracking.mlflow_store.quiet_mlflow`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_DATABASE_ERROR_TEXT = "sqlalche.me"  # in the text of an error that MLflow passes on from its database


def create_tables(database: Path, artifacts_uri: str) -> None:
    """Make MLflow's tables in a new SQLite file.

    Args:
        database: the file; it must not exist.
        artifacts_uri: where runs of this store keep their artifacts.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{database}", artifacts_uri)
    store.engine.dispose()


def delete_artifacts(artifact_uri: str, tracking_uri: str, paths: Iterable[str]) -> None:
    """Delete artifacts of a run, which MLflow's client cannot do.

    Args:
        artifact_uri: the run's.
        tracking_uri: the store's address.
        paths: files below `artifact_uri`.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
    for path in paths:
        repository.delete_artifacts(path)


def is_database_error(text: str) -> bool:
    """Tell a failure of MLflow's database from a bad request.

    MLflow gives both the same code.

    Args:
        text: of MLflow's error; it holds SQLAlchemy's address where the database has failed.

    Returns:
        False for a value that a column cannot hold: that is the request's fault.
    """
    return _DATABASE_ERROR_TEXT in text and "DataError" not in text
