"""The multi-process service is started, checked, and ended however its owner ends; a stand-in is the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.resources import mps
from sweeps.resources.mps import LOGS, PIPES, MpsService, MpsUnavailableError
from tests.support.mps import stand_in
from tests.support.processes import is_running
from tests.support.waiting import wait_until


def daemon_of(service_folder: Path) -> int:
    return int((service_folder / f"{mps.CONTROL}.pid").read_text())


def wait_until_daemon_ended(pid: int) -> None:
    wait_until(lambda: not is_running(pid), "the end of the daemon")


def written_pid(path: Path, unless: Callable[[], object] = lambda: None) -> int:
    """Wait for a process that writes its id and a newline to `path`."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "the id of a process", unless=unless)
    return int(path.read_text())


def test_a_service_runs_until_it_is_closed(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    with MpsService() as service:
        folder = Path(service.environment[PIPES])
        daemon = daemon_of(folder)
        assert is_running(daemon)
        assert set(service.environment) == {PIPES, LOGS}
    wait_until_daemon_ended(daemon)
    assert not folder.parent.exists()


def test_a_service_that_a_thread_starts_is_the_one_that_a_study_uses(tmp_path, monkeypatch):
    wait = f"while [ ! -e {tmp_path}/connected ]; do sleep 0.02; done"
    stand_in(tmp_path, monkeypatch, start=f"echo start >> {tmp_path}/starts; {wait}")
    with mps.StartingService() as starting:
        (tmp_path / "connected").touch()  # what the driver does meanwhile
        with mps.sharing_modes("mps", shared=True, measured=False, address=None, starting=starting) as modes:
            daemon = daemon_of(Path(modes[mps.MPS][PIPES]))
            assert is_running(daemon)
    wait_until_daemon_ended(daemon)
    assert (tmp_path / "starts").read_text() == "start\n"


def test_a_service_that_no_study_takes_is_ended(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, start=f'echo "$CUDA_MPS_PIPE_DIRECTORY" > {tmp_path}/folder')
    with mps.StartingService():
        wait_until((tmp_path / "folder").exists, "the start of the daemon")
    folder = Path((tmp_path / "folder").read_text().strip())
    wait_until(lambda: not folder.parent.exists(), "the removal of the service's folder")


HUNG_PROBE = "import os, pathlib, time; pathlib.Path({path!r}).write_text(f'{{os.getpid()}}\\n'); time.sleep(600)"
OWNER = """
import sys
from sweeps.resources import mps

mps.PROBE, mps.PROBE_SECONDS = (sys.executable, "-c", {probe!r}), 3600.0
{wait}
"""
WAITS = {
    "beside other work": "with mps.StartingService() as starting:\n    starting.take()",
    "alone": "mps.MpsService()",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_an_interrupt_while_the_probe_hangs_ends_the_probe_and_the_daemon(tmp_path, monkeypatch, wait):
    stand_in(tmp_path, monkeypatch, start=f'echo "$CUDA_MPS_PIPE_DIRECTORY" > {tmp_path}/folder')
    code = OWNER.format(probe=HUNG_PROBE.format(path=str(tmp_path / "probing")), wait=wait)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as owner:
        probe = written_pid(tmp_path / "probing", unless=lambda: owner.poll() is not None and "the owner has ended")
        folder = Path((tmp_path / "folder").read_text().strip())
        daemon = daemon_of(folder)
        os.kill(owner.pid, signal.SIGINT)
        assert "KeyboardInterrupt" in owner.communicate()[1]
    assert not any(map(is_running, (daemon, probe)))
    assert not folder.parent.exists()


@pytest.mark.parametrize("quits", [True, False], ids=["daemon that quits", "daemon that does not quit"])
def test_the_end_of_a_study_does_not_wait_for_a_probe_that_hangs(tmp_path, monkeypatch, quits):
    monkeypatch.setattr(mps, "PROBE_SECONDS", 3600.0)
    monkeypatch.setattr(mps, "CANCEL_SECONDS", 0.5)
    stand_in(
        tmp_path, monkeypatch, start=f'echo "$CUDA_MPS_PIPE_DIRECTORY" > {tmp_path}/folder', quits=quits,
        probe=HUNG_PROBE.format(path=str(tmp_path / "probing")),
    )  # fmt: skip
    with mps.StartingService():
        written_pid(tmp_path / "probing")
        folder = Path((tmp_path / "folder").read_text().strip())
        daemon = daemon_of(folder)
    wait_until_daemon_ended(daemon)
    assert not folder.parent.exists()


def test_the_end_of_a_study_ends_a_daemon_that_hangs_as_it_starts(tmp_path, monkeypatch, capsys):
    hang = f'echo "$CUDA_MPS_PIPE_DIRECTORY" > {tmp_path}/folder; echo $$ > {tmp_path}/starting; exec sleep 600'
    stand_in(tmp_path, monkeypatch, start=hang)
    with mps.StartingService():
        daemon = written_pid(tmp_path / "starting")
    assert capsys.readouterr().out == ""  # else the supervisor was waited for and killed
    wait_until_daemon_ended(daemon)
    assert not Path((tmp_path / "folder").read_text().strip()).parent.exists()


def test_a_cancellation_ends_the_present_wait_and_those_that_begin_later():
    cancellation, ended = mps.Cancellation(), []
    with cancellation.ending(lambda: ended.append("over")):
        pass
    with cancellation.ending(lambda: ended.append("present")):
        cancellation.cancel()
    with cancellation.ending(lambda: ended.append("later")):
        assert ended == ["present", "later"]


def test_an_interrupt_of_the_wait_for_a_service_leaves_none_behind(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    starting = mps.StartingService()
    service = starting._service.result()
    answers = iter([KeyboardInterrupt()])

    def interrupted_once() -> MpsService:
        if (error := next(answers, None)) is not None:
            raise error
        return service

    monkeypatch.setattr(starting._service, "result", interrupted_once)
    with pytest.raises(KeyboardInterrupt), starting:
        starting.take()
    assert not Path(service.environment[PIPES]).parent.exists()


def test_a_service_that_cannot_start_is_said_where_it_would_be_used(tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch, start="exit 1")
    with mps.StartingService() as starting:
        with mps.sharing_modes("mps", shared=True, measured=False, address=None, starting=starting) as modes:
            assert modes == {mps.PROCESSES: {}}
        assert capsys.readouterr().out.startswith("sharing mps: no multi-process service (")
    with mps.StartingService():
        pass
    assert capsys.readouterr().out == ""


def test_a_daemon_that_does_not_quit_is_killed(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, quits=False)
    with MpsService(end_seconds=0.2) as service:
        daemon = daemon_of(Path(service.environment[PIPES]))
    wait_until_daemon_ended(daemon)


def test_a_daemon_that_hangs_as_it_starts_is_given_up_and_killed(tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch, start=f"echo $$ > {tmp_path}/starting; exec sleep 600")
    with pytest.raises(MpsUnavailableError, match=f"{mps.CONTROL} has not started within 2 s"):
        MpsService(start_seconds=2.0)
    assert capsys.readouterr().out == ""
    wait_until_daemon_ended(written_pid(tmp_path / "starting"))


def test_a_supervisor_that_hangs_is_killed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mps, "KILL_SECONDS", 2.0)
    stand_in(tmp_path, monkeypatch)
    with MpsService(end_seconds=0.2) as service:
        daemon = daemon_of(Path(service.environment[PIPES]))
        (tmp_path / "timeout").write_text("#!/bin/sh\nexec sleep 600\n")
        (tmp_path / "timeout").chmod(0o755)
    assert capsys.readouterr().out == f"{mps.CONTROL} has not ended within 2.4 s and is killed\n"
    wait_until_daemon_ended(daemon)  # the stand-in's stays in the process group of the supervisor


def test_an_owner_that_is_killed_while_the_daemon_starts_leaves_none(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, start=f"echo $$ > {tmp_path}/starting; exec sleep 600")
    with subprocess.Popen([sys.executable, "-c", OWNER.format(probe="", wait=WAITS["alone"])]) as owner:
        daemon = written_pid(tmp_path / "starting")
        os.kill(owner.pid, signal.SIGKILL)
    wait_until_daemon_ended(daemon)


def test_a_killed_owner_leaves_no_daemon(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch)
    code = (
        "import sys; from sweeps.resources import mps; mps.PROBE = (sys.executable, '-c', 'pass'); "
        f"s = mps.MpsService(); print(s.environment['{PIPES}'], flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        daemon = daemon_of(folder)
        os.kill(owner.pid, signal.SIGKILL)
    wait_until_daemon_ended(daemon)
    wait_until(lambda: not folder.parent.exists(), "the removal of the service's folder")


@pytest.mark.parametrize(
    ("options", "reason"),
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
def test_a_service_that_does_not_work_is_refused_and_leaves_no_files(tmp_path, monkeypatch, options, reason):
    folder = tmp_path / "service"
    folder.mkdir()
    monkeypatch.setattr(mps.tempfile, "mkdtemp", lambda prefix: str(folder))
    stand_in(tmp_path, monkeypatch, **options)
    with pytest.raises(MpsUnavailableError, match=reason):
        MpsService()
    assert not folder.exists()


def test_a_machine_without_the_program_has_no_service(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MpsUnavailableError, match="nvidia-cuda-mps-control is not installed"):
        MpsService()


class TestSharingModes:
    def modes(self, choice: str, **options) -> dict[str, dict[str, str]]:
        with mps.sharing_modes(choice, **{"shared": True, "measured": False, "address": None, **options}) as modes:
            return dict(modes)

    def test_the_service_is_started_if_trials_may_use_it(self, tmp_path, monkeypatch):
        stand_in(tmp_path, monkeypatch)
        assert list(self.modes("mps")) == ["mps"]
        assert set(self.modes("mps")["mps"]) == {PIPES, LOGS}
        assert list(self.modes("auto", measured=True)) == ["processes", "mps"]

    def test_the_service_is_not_started_if_trials_cannot_use_it(self, monkeypatch):
        monkeypatch.setattr(mps, "MpsService", lambda: pytest.fail("it was started"))
        cases = (("processes", {}), ("auto", {}), ("mps", {"shared": False}), ("mps", {"address": "auto"}))
        for choice, options in cases:
            assert self.modes(choice, **options) == {"processes": {}}

    def test_a_missing_service_is_one_line_and_trials_share_in_turns(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert self.modes("mps") == {"processes": {}}
        assert capsys.readouterr().out == (
            "sharing mps: no multi-process service (nvidia-cuda-mps-control is not installed); trials share a card in "
            "turns\n"
        )

    def test_the_service_ends_with_an_interrupted_study(self, tmp_path, monkeypatch):
        stand_in(tmp_path, monkeypatch)
        daemons = []

        def study() -> None:
            with mps.sharing_modes("mps", shared=True, measured=False, address=None) as modes:
                daemons.append(daemon_of(Path(modes["mps"][PIPES])))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            study()
        wait_until_daemon_ended(daemons[0])
