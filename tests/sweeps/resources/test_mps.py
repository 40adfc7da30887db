"""The multi-process service is started, seen to work, and ended however its owner ends; a stand-in is the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.resources import mps
from sweeps.resources.mps import LOGS, PIPES, NoServiceError, Service
from tests.support.mps import stand_in


def daemon_of(service_folder: Path) -> int:
    return int((service_folder / f"{mps.CONTROL}.pid").read_text())


def gone(pid: int) -> bool:
    """Whether a process has ended; one that is not yet waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    while not gone(pid):
        time.sleep(0.05)


def test_a_service_lives_until_it_is_closed(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    with Service() as service:
        folder = Path(service.environment[PIPES])
        daemon = daemon_of(folder)
        assert not gone(daemon)
        assert set(service.environment) == {PIPES, LOGS}
    wait_until_gone(daemon)
    assert not folder.parent.exists()


def test_a_daemon_that_does_not_quit_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(mps, "_KEEPER", mps._KEEPER.replace("timeout 10", "timeout 0.2"))
    stand_in(tmp_path, monkeypatch, quits=False)
    with Service() as service:
        daemon = daemon_of(Path(service.environment[PIPES]))
    wait_until_gone(daemon)


def test_a_killed_owner_leaves_no_daemon(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    code = (
        "import sys, time; from sweeps.resources import mps; mps.PROBE = (sys.executable, '-c', 'pass'); "
        f"s = mps.Service(); print(s.environment['{PIPES}'], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        daemon = daemon_of(folder)
        os.kill(owner.pid, signal.SIGKILL)
    wait_until_gone(daemon)
    while folder.parent.exists():
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"start": 'echo "no device" >&2; exit 1'}, r"does not start \(no device\)"),
        ({"probe": "raise SystemExit('CUDA error 805')"}, "a process that uses it has no card: CUDA error 805"),
        ({"servers": ""}, "a process does not find it"),
        (
            {"servers": "", "start": 'echo "[control] cannot listen" > "$CUDA_MPS_LOG_DIRECTORY/control.log"'},
            r"does not find it \(\[control\] cannot listen\)",
        ),
    ],
)
def test_a_service_that_does_not_work_is_none_and_leaves_nothing(tmp_path, monkeypatch, how, why):
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setattr(mps.tempfile, "mkdtemp", lambda prefix: str(folder))
    stand_in(tmp_path, monkeypatch, **how)
    with pytest.raises(NoServiceError, match=why):
        Service()
    assert not folder.exists()


def test_without_the_program_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoServiceError, match="nvidia-cuda-mps-control is not installed"):
        Service()


class TestWays:
    def of(self, asked: str, **how) -> dict[str, dict[str, str]]:
        with mps.sharing_modes(asked, **{"shared": True, "measured": False, "address": None, **how}) as found:
            return dict(found)

    def test_the_service_is_started_where_it_may_be_of_use(self, tmp_path, monkeypatch):
        stand_in(tmp_path, monkeypatch)
        assert list(self.of("mps")) == ["mps"]
        assert set(self.of("mps")["mps"]) == {PIPES, LOGS}
        assert list(self.of("auto", measured=True)) == ["processes", "mps"]

    def test_and_not_where_it_cannot(self, monkeypatch):
        monkeypatch.setattr(mps, "Service", lambda: pytest.fail("it was started"))
        for asked, how in (("processes", {}), ("auto", {}), ("mps", {"shared": False}), ("mps", {"address": "auto"})):
            assert self.of(asked, **how) == {"processes": {}}

    def test_that_there_is_none_is_one_line_and_no_end(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert self.of("mps") == {"processes": {}}
        assert capsys.readouterr().out == (
            "sharing mps: no multi-process service (nvidia-cuda-mps-control is not installed); trials share a card in "
            "turns\n"
        )

    def test_it_ends_however_the_study_ends(self, tmp_path, monkeypatch):
        stand_in(tmp_path, monkeypatch)
        daemons = []

        def study() -> None:
            with mps.sharing_modes("mps", shared=True, measured=False, address=None) as found:
                daemons.append(daemon_of(Path(found["mps"][PIPES])))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            study()
        wait_until_gone(daemons[0])


def test_clients_are_told_where_it_is(monkeypatch):
    monkeypatch.setenv(PIPES, "elsewhere")
    mps.use(None)
    assert os.environ[PIPES] == "elsewhere"
    mps.use({PIPES: "here"})
    assert os.environ[PIPES] == "here"
