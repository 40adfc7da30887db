"""Checkpoints go through the relay where a machine cannot read the study's folder, and directly where it can."""

from __future__ import annotations

import pytest

from sweeps.execution import checkpoint_relay
from sweeps.execution.checkpoint_relay import CheckpointLocation
from sweeps.records.names import CHECKPOINT_FILE, TRIALS_FOLDER


class Remote:
    """A method of an actor: called at once, in this process."""

    def __init__(self, method):
        self.remote = method


def test_without_a_relay_the_study_folder_is_used(tmp_path):
    location = CheckpointLocation(str(tmp_path), "abcd", None)
    assert location.path == tmp_path / TRIALS_FOLDER / "abcd" / CHECKPOINT_FILE
    location.download()
    location.upload()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # its temporary folder goes with a location
def test_a_relay_stores_and_returns_checkpoints(tmp_path, monkeypatch):
    relay = checkpoint_relay._Relay(str(tmp_path))
    actor = type("Actor", (), {"get": Remote(relay.get), "put": Remote(relay.put)})
    monkeypatch.setattr(checkpoint_relay.ray, "get_actor", lambda name, namespace: actor)
    monkeypatch.setattr(checkpoint_relay.ray, "get", lambda content: content)
    writer, reader = (CheckpointLocation("/not here", "abcd", "relay") for _ in range(2))
    assert writer.path != reader.path
    writer.download()
    assert not writer.path.exists()  # nothing is stored yet
    for content in (b"first", b"second"):
        writer.path.write_bytes(content)
        writer.upload()
    reader.download()
    assert reader.path.read_bytes() == b"second"
    assert (tmp_path / TRIALS_FOLDER / "abcd" / CHECKPOINT_FILE).read_bytes() == b"second"
