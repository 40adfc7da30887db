"""What tests of several rooms share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory) -> Path:
    """An MLflow database with its tables, which take seconds to make: to be copied."""
    from sweeps.records.names import MLFLOW_FILE
    from sweeps.tracking.mlflow_store import create_database, quiet_mlflow

    quiet_mlflow()
    folder = tmp_path_factory.mktemp("blank")
    create_database(folder / MLFLOW_FILE, folder)
    return folder / MLFLOW_FILE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run whole studies come first: side by side with the others they are the longest of all groups."""
    items.sort(key=lambda item: not runs_studies(str(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What `make test` runs side by side: a file's tests stay in one process, where they share their fixtures, and no
    two tests run whole studies at once, since each of those starts Ray on all cores."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "studies" if runs_studies(str(config.rootpath / file)) else file

    return ByFile(config, log)


@cache
def runs_studies(file: str) -> bool:
    """Whether tests of a file run the command itself."""
    return "/tests/faults/" in file or "from tests.support import studies" in Path(file).read_text()
