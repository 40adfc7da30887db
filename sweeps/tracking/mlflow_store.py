"""How MLflow's store is reached: MLflow's own settings, the client, the embedded database, what an outage is.

MLflow is imported only inside functions, after `quiet_mlflow`, since the driver imports this package too and must not
pay for it. Times are milliseconds since the epoch, as MLflow wants them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.records.names import ARTIFACTS_FOLDER

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

DATABASE_FAULT = "sqlalche.me"
CALL_SECONDS = 10  # a call to a server that takes longer has failed and is repeated by the tracker itself


def quiet_mlflow() -> None:
    """Prepare this process for MLflow: short time-outs, no retries inside a call, no telemetry, nothing printed.

    Call it before MLflow is imported. A call that timed out may yet be carried out by the server, so it is repeated
    only after looking at what is there, which MLflow's own retries would not do.
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
    """What MLflow raises when its store or server cannot take a record now."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def is_refusal(error: MlflowException) -> bool:
    """Whether the store will never take the record. A fault of its database (a full disk) is none, though MLflow gives
    it the same code as a bad request: the text then bears SQLAlchemy's address, and another try may do better."""
    text = str(error)
    of_database = DATABASE_FAULT in text and "DataError" not in text  # a value that a column cannot hold is our own
    return error.error_code == "INVALID_PARAMETER_VALUE" or (error.error_code == "BAD_REQUEST" and not of_database)


def one_line(error: BaseException) -> str:
    """The first line of an error's text, cut to 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def milliseconds(seconds: float) -> int:
    """Seconds since the epoch as MLflow's milliseconds; the same input gives the same key whenever it is replayed."""
    return round(seconds * 1000)


def make_client(uri: str, study_dir: Path) -> MlflowClient:
    """A client of a store; a SQLite file that is missing is made, its artifacts beside it in `study_dir`."""
    from mlflow.tracking import MlflowClient

    path = sqlite_path(uri)
    if path is not None and not path.exists():
        create_database(path, study_dir)
    return MlflowClient(tracking_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    """The file behind a `sqlite:///` URI; None for any other store."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :].partition("?")[0]) if uri.startswith(prefix) else None


def create_database(path: Path, study_dir: Path) -> None:
    """Make the tables beside the database and move them into place: MLflow cannot mend a half-made database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    fresh = path.with_name(path.name + f".{os.getpid()}.new")
    for leftover in path.parent.glob(path.name + ".*.new*"):
        leftover.unlink()
    artifacts = (study_dir / ARTIFACTS_FOLDER).resolve().as_uri()
    store = SqlAlchemyStore(f"sqlite:///{fresh}", artifacts)
    store.engine.dispose()
    os.replace(fresh, path)
