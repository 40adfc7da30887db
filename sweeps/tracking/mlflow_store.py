"""Reaches MLflow's store: MLflow's own settings, the client, the embedded database, what an outage is.

MLflow is imported only inside functions, after `quiet_mlflow`, since the driver imports this package too and must not
pay for it. Times are milliseconds since the epoch, as MLflow wants them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.utils import atomic_path
from sweeps.records import ARTIFACTS_FOLDER
from sweeps.tracking.mlflow_adapter import create_tables, is_database_error

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

MESSAGE_LENGTH = 200  # characters of an error in tracking.json and in messages
CALL_SECONDS = 10  # a call to a server that takes longer has failed and is repeated by the tracker itself


def quiet_mlflow() -> None:
    """Prepare this process for MLflow; call it before MLflow is imported.

    It sets short time-outs, no retries inside a call, no telemetry and no prints. A server may still carry out a call
    that has timed out, so a call is repeated only after a look at what the store has, which MLflow's own retries skip.
    """
    os.environ.update(
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(CALL_SECONDS),
        MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT=str(CALL_SECONDS),
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_CONFIGURE_LOGGING="false",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )


def outages() -> tuple[type[Exception], ...]:
    """Return the errors that mean: the store cannot take a record now.

    Returns:
        Error classes, for `except`.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def is_refusal(error: MlflowException) -> bool:
    """Tell whether the store will never take a record.

    After an outage another try may succeed.

    Args:
        error: MLflow's.

    Returns:
        True for a bad request; False for a failure of the store, of its database too (a full disk).
    """
    if error.error_code == "BAD_REQUEST":
        return not is_database_error(str(error))
    return error.error_code == "INVALID_PARAMETER_VALUE"


def is_denial(error: Exception) -> bool:
    """Tell whether the store lets this user in.

    Args:
        error: one of `outages()`.

    Returns:
        True where the store asks for other credentials or other rights.
    """
    status = getattr(error, "get_http_status_code", None)
    return status is not None and status() in (401, 403)


def milliseconds(seconds: float) -> int:
    """Convert a time for MLflow.

    Equal times give equal keys whenever they are carried again.

    Args:
        seconds: since the epoch.

    Returns:
        Milliseconds since the epoch.
    """
    return round(seconds * 1000)


def make_client(uri: str, study_dir: Path) -> MlflowClient:
    """Make a client of a store; a missing SQLite file is made.

    Args:
        uri: the store's address.
        study_dir: where the artifacts of a new SQLite store lie.

    Returns:
        The client.
    """
    from mlflow.tracking import MlflowClient

    path = sqlite_path(uri)
    if path is not None and not path.exists():
        create_database(path, study_dir)
    return MlflowClient(tracking_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    """Return the file behind a `sqlite:///` address; None for any other store."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :].partition("?")[0]) if uri.startswith(prefix) else None


def create_database(path: Path, study_dir: Path) -> None:
    """Make MLflow's SQLite store, whole or not at all.

    MLflow cannot mend a half-made one.

    Args:
        path: the file to make.
        study_dir: where the store's artifacts lie.

    Raises:
        OSError: the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        create_tables(temporary, (study_dir / ARTIFACTS_FOLDER).resolve().as_uri())
