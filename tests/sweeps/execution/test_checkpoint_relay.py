"""Checkpoints go through the relay where a machine cannot read the study's folder, and directly where it can."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

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
    location.upload(2)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def relay(tmp_path, monkeypatch):
    """A relay for the study in `tmp_path`, whose calls run in this process."""
    relay = checkpoint_relay._Relay(str(tmp_path))
    methods = {name: Remote(getattr(relay, name)) for name in ("get", "put", "set_aside")}
    monkeypatch.setattr(checkpoint_relay.ray, "get_actor", lambda name, namespace: type("Actor", (), methods))
    monkeypatch.setattr(checkpoint_relay.ray, "get", lambda content, timeout: content)
    return relay


def upload(location: CheckpointLocation, content: bytes, versions: int = 2) -> None:
    location.path.write_bytes(content)
    location.upload(versions)


def stored(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / TRIALS_FOLDER / "abcd").iterdir()}


pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in")  # its temporary folder goes with a location
OLDER = "checkpoint.1.safetensors"


@pytest.mark.usefixtures("relay")
def test_a_relay_stores_and_returns_as_many_checkpoints_as_a_trial_keeps(tmp_path):
    writer, reader = (CheckpointLocation("/not here", "abcd", "relay") for _ in range(2))
    assert writer.path != reader.path
    writer.download()
    assert not writer.path.exists()  # nothing is stored yet
    for content in (b"first", b"second", b"third"):
        upload(writer, content)
    reader.download()
    assert reader.path.read_bytes() == b"third"
    assert reader.path.with_name(OLDER).read_bytes() == b"second"
    assert stored(tmp_path) == {CHECKPOINT_FILE: b"third", OLDER: b"second"}
    upload(writer, b"last", versions=1)
    assert stored(tmp_path) == {CHECKPOINT_FILE: b"last"}


def test_a_call_that_is_repeated_does_not_push_out_the_checkpoint_before(relay, tmp_path):
    for content in (b"first", b"second", b"second"):
        relay.put("abcd", content, 2)
    assert stored(tmp_path) == {CHECKPOINT_FILE: b"second", OLDER: b"first"}


@pytest.mark.usefixtures("relay")
def test_a_checkpoint_that_cannot_be_used_is_renamed_in_the_study_too(tmp_path):
    writer, reader = (CheckpointLocation("/not here", "abcd", "relay") for _ in range(2))
    for content in (b"first", b"second"):
        upload(writer, content)
    reader.download()
    assert reader.set_aside(reader.path) == f"{CHECKPOINT_FILE}.unusable"
    assert not reader.path.exists()
    upload(reader, b"third")
    assert stored(tmp_path) == {CHECKPOINT_FILE: b"third", OLDER: b"first", f"{CHECKPOINT_FILE}.unusable": b"second"}
    upload(reader, b"last", versions=1)  # the trial has ended
    assert stored(tmp_path) == {CHECKPOINT_FILE: b"last"}


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize(
    ("error", "message"), [(ActorDiedError(), "is lost"), (GetTimeoutError(), "has not answered for 300 s")]
)
def test_a_relay_that_is_lost_or_hangs_is_like_a_disk_that_is_not_there(monkeypatch, error, message):
    """A trial takes that for a checkpoint that could not be written, and trains on."""
    location = CheckpointLocation("/not here", "abcd", "relay")
    location.path.write_bytes(b"x")

    def get(content, timeout):
        raise error

    monkeypatch.setattr(checkpoint_relay.ray, "get", get)
    with pytest.raises(OSError, match=message):
        location.upload(2)
    with pytest.raises(OSError, match=message):
        location.download()
