"""A storage that is a folder, and one that is a bucket; a study's folder as a driver at work has it."""

from __future__ import annotations

import pytest

from tests.support.buckets import CREDENTIALS, bucket


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path, monkeypatch):
    if request.param == "file":
        yield (tmp_path / "stored").as_uri()
        return
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with bucket() as found:
        yield found


@pytest.fixture
def study(tmp_path):
    """A study's folder as a driver at work has it."""
    folder = tmp_path / "studies" / "small"
    (folder / "trials" / "a").mkdir(parents=True)
    (folder / "space.yaml").write_text("question: Which?\n")
    (folder / "journal.jsonl").write_text('{"event": "study"}\n{"event": "proposed"}\n')
    (folder / "optuna.journal").write_text('{"op": 0}\n')
    (folder / "trials" / "a" / "checkpoint.safetensors").write_bytes(b"weights")
    (folder / "mlflow.db").write_bytes(b"not carried")
    (folder / "driver.lock").write_bytes(b"")
    return folder
