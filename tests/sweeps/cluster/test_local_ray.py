"""A Ray of this machine: the token is asked for, and its files belong to the user alone."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from lowrank.errors import InputError
from sweeps.cluster import local_ray, ray_session


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home and a temporary folder of the test's own; Ray's configuration stays as it is."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "home" / "auth_token"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local_ray, "enable_token", lambda: None)
    monkeypatch.setattr(local_ray, "LONGEST_BASE", 200)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_token_is_made_for_the_user_alone(place, capsys):
    local_ray.require_token()
    token = local_ray.token_file()
    assert (mode(token), len(token.read_text())) == (0o600, 64)
    assert capsys.readouterr().out == ""
    written = token.read_text()
    local_ray.require_token()
    assert token.read_text() == written


def test_a_token_that_others_can_read_is_closed_and_said(place, capsys):
    token = local_ray.token_file()
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    local_ray.require_token()
    assert (mode(token), token.read_text()) == (0o600, "a" * 64)
    assert "could be read by other users of this machine; now it cannot" in capsys.readouterr().out


def test_a_home_that_cannot_be_written_needs_no_file_for_the_token(place, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/1")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    local_ray.require_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("value", ["disabled", "DISABLED", "k8s"])
def test_a_ray_without_a_token_must_be_allowed(place, monkeypatch, value, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", value)
    with pytest.raises(InputError, match=f"RAY_AUTH_MODE={value} would let everybody .*--allow-open-ports"):
        local_ray.require_token()
    local_ray.require_token(allow_open_ports=True)
    assert "whoever reaches this machine can run code" in capsys.readouterr().out
    assert not local_ray.token_file().exists()


def test_the_folder_of_ray_is_the_users_alone(place, monkeypatch):
    folder = local_ray.private_folder()
    assert folder == place / f"lowrank-{os.geteuid()}"
    assert mode(folder) == 0o700
    folder.chmod(0o777)
    assert mode(local_ray.private_folder()) == 0o700
    monkeypatch.setattr(local_ray, "LONGEST_BASE", 3)  # sockets in a longer path could not be opened
    assert local_ray.private_folder().parent.as_posix() == "/tmp"


def test_a_link_in_the_place_of_the_folder_is_refused(place):
    (place / "elsewhere").mkdir()
    (place / f"lowrank-{os.geteuid()}").symlink_to(place / "elsewhere")
    with pytest.raises(InputError, match="must be this user's own, but it belongs to another or is a link"):
        local_ray.private_folder()


def _session(root: Path, number: int, pid: int, age: float, listeners: list[socket.socket] | None) -> Path:
    """The folder of a session, with a socket at which nobody listens any more unless its listener is kept in a list."""
    path = root / f"session_2026-01-0{number}_00-00-00_000000_{pid}"
    (path / "sockets").mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path / "sockets" / "plasma_store"))
    listener.listen()
    if listeners is None:
        listener.close()
    else:
        listeners.append(listener)
    for inner in (path / "sockets", path):
        os.utime(inner, (time.time() - age,) * 2)
    return path


def test_folders_of_sessions_that_have_ended_are_removed_and_never_a_live_one(monkeypatch):
    monkeypatch.setattr(local_ray, "NEWEST_KEPT", 1)
    ended_pid = 2**22 + 1  # above the largest id of a process
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s") as root:  # a short path, for the sockets
        folder = Path(root)
        listeners: list[socket.socket] = []
        ended = [_session(folder, 1, ended_pid, 7200, None), _session(folder, 2, ended_pid, 700, None)]
        remaining = [
            _session(folder, 3, ended_pid, 7200, None),  # the newest of those that have ended
            _session(folder, 4, os.getpid(), 7200, None),  # its driver runs
            _session(folder, 5, ended_pid, 7200, listeners),  # its driver runs in another container
            _session(folder, 6, ended_pid, 60, None),  # it may be about to begin
        ]
        (folder / "session_latest").symlink_to(remaining[3])
        assert sorted(local_ray.remove_ended_sessions(folder)) == ended
        assert sorted(path for path in folder.iterdir() if not path.is_symlink()) == remaining
        assert local_ray.remove_ended_sessions(folder / "absent") == []
        listeners.pop().close()


@pytest.mark.parametrize("opened", ["folder", "token"])
def test_open_rights_are_found_before_the_first_trial(place, monkeypatch, opened):
    monkeypatch.setattr(local_ray, "token_is_enabled", lambda: True)
    local_ray.require_token()
    folder = local_ray.private_folder()
    local_ray.check_private(folder)
    (folder if opened == "folder" else local_ray.token_file()).chmod(0o755)
    with pytest.raises(InputError, match="must be for its owner alone, but its mode is 0755"):
        local_ray.check_private(folder)


def test_a_ray_that_asks_for_no_token_is_refused(place, monkeypatch):
    monkeypatch.setattr(local_ray, "token_is_enabled", lambda: False)
    with pytest.raises(InputError, match="Ray was started without a token"):
        local_ray.check_private(place)


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (RuntimeError("The current node timed out during startup. This could happen"), 2),
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/x"), 1),
        (ValueError("no such option\nmore"), 1),
    ],
)
def test_a_ray_that_does_not_start_is_one_line_without_an_address(place, monkeypatch, capsys, error, starts):
    calls = []

    def fail(**_: object) -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(ray_session, "MAX_STARTS", 2)
    monkeypatch.setattr(ray_session.ray, "init", fail)
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    with pytest.raises(InputError) as raised:
        ray_session.connect(None, cpus=1)
    reason = str(error).splitlines()[0]
    assert str(raised.value) == f"Ray does not start on this machine: {reason}"
    assert len(calls) == starts
    assert capsys.readouterr().out.count("trying again") == starts - 1


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", None])
def test_a_temporary_folder_whose_path_is_too_long_is_not_taken(monkeypatch, tmp_path, variable):
    """Paths of Ray's sockets in it would have more than 107 bytes, and Ray would end in a traceback."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    if variable:
        monkeypatch.setenv(variable, str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = local_ray.private_folder()
    assert folder.parent == Path("/tmp")
    session = "session_2026-11-30_01-51-37_123456_1234567/sockets/plasma_store"
    assert len(str(folder / "ray" / session)) < 104
