"""What tests of several rooms share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory) -> Path:
    """An MLflow database with its tables, which take seconds to make: to be copied."""
    from sweeps.records import MLFLOW_FILE
    from sweeps.tracking_store import create_database, quiet_mlflow

    quiet_mlflow()
    folder = tmp_path_factory.mktemp("blank")
    create_database(folder / MLFLOW_FILE, folder)
    return folder / MLFLOW_FILE
