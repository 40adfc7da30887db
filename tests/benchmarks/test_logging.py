"""The benchmark of logging leaves nothing behind that the next benchmark of the same command would see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.studies.logging_driver_time import store
from sweeps.tracking.uri import TRACKING_VARIABLE


@pytest.mark.parametrize("before", [None, "sqlite:///mine.db"])
def test_the_address_that_mlflow_sets_ends_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    import mlflow

    if before is None:
        monkeypatch.delenv(TRACKING_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(TRACKING_VARIABLE, before)
    with store(tmp_path, server=False) as uri:
        mlflow.set_tracking_uri(uri)  # as Ray's callback does
        assert os.environ[TRACKING_VARIABLE] == uri
    assert os.environ.get(TRACKING_VARIABLE) == before
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # of this process
