"""A cluster whose head is lost: the driver is ended with one line, and only then."""

from __future__ import annotations

import socket
import threading

import pytest

from lowrank.utils.cli import ExitCode
from sweeps.cluster import head_watchdog
from sweeps.cluster.head_watchdog import CHECK_SECONDS, SILENCE_SECONDS, HeadWatchdog
from tests.support.waiting import scaled


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(scaled())
        yield listening


class Watched:
    """A watchdog whose checks a test makes one by one: `stop` waits for nothing."""

    def __init__(self, monkeypatch, close_records=lambda: None):
        self.now, self.answers, self.raylet_answers, self.codes = 0.0, True, True, []
        monkeypatch.setattr(head_watchdog, "monotonic_time", lambda: self.now)
        self.watchdog = HeadWatchdog("127.0.0.1:1", "mine", close_records, self.codes.append, raylet="127.0.0.1:2")
        answers = {"127.0.0.1:1": lambda: self.answers, "127.0.0.1:2": lambda: self.raylet_answers}
        monkeypatch.setattr(self.watchdog, "_answers", lambda address: answers[address]())

    def check(self, times: int, seconds: float = CHECK_SECONDS, *, asleep: float = 0.0) -> int:
        """Run the watch for so many checks; returns how many it made before it ended the process."""
        pauses = iter([asleep + seconds, *[seconds] * (times - 1)])
        made = 0

        def wait(timeout: float) -> bool:
            nonlocal made
            pause = next(pauses, None)
            if pause is None:
                return True
            made += 1
            self.now += pause
            return False

        self.watchdog._stop.wait = wait  # type: ignore[method-assign]
        self.watchdog._watch()
        return made


def test_a_lost_head_ends_the_driver_with_one_line(monkeypatch, capsys):
    watched = Watched(monkeypatch)
    watched.check(100)  # it answers, for longer than it may be silent
    assert watched.codes == []
    watched.answers = False
    assert watched.check(100) == SILENCE_SECONDS / CHECK_SECONDS + 1
    assert watched.codes == [ExitCode.HEAD_LOST]
    message = "error: the cluster's head at 127.0.0.1:1 is gone; nothing is lost, go on with: mine"
    assert capsys.readouterr().err == f"{message}\n"


def test_a_lost_raylet_ends_a_driver_that_would_wait_for_ever(monkeypatch, capsys):
    watched = Watched(monkeypatch)
    watched.raylet_answers = False
    assert watched.check(100) == SILENCE_SECONDS / CHECK_SECONDS + 1
    assert watched.codes == [ExitCode.HEAD_LOST]
    message = "error: Ray on the driver's machine, at 127.0.0.1:2, is gone; nothing is lost, go on with: mine"
    assert capsys.readouterr().err == f"{message}\n"


@pytest.mark.parametrize("answers", [True, False])
def test_after_a_sigterm_a_lost_head_is_an_interruption_at_once(answers, monkeypatch, capsys):
    """As long as the head answers, the driver itself ends the study."""
    monkeypatch.setattr(head_watchdog, "sigterm_received", lambda: True)
    watched = Watched(monkeypatch)
    watched.answers = answers
    checks = watched.check(100)
    if answers:
        assert (checks, watched.codes, capsys.readouterr().err) == (100, [], "")
        return
    assert (checks, watched.codes) == (1, [ExitCode.INTERRUPTED])
    assert capsys.readouterr().err == "interrupted, and so was Ray; nothing is lost, go on with: mine\n"


def test_time_asleep_is_no_silence_of_the_head(monkeypatch):
    """After a laptop wakes up its network takes some seconds, and so does the first probe that succeeds."""
    watched = Watched(monkeypatch)
    watched.answers = False
    assert watched.check(2, asleep=3600) == 2
    assert watched.codes == []
    assert watched.check(100, asleep=3600) > 2  # probes that fail, before it counts as lost
    assert watched.codes == [ExitCode.HEAD_LOST]


def test_the_records_are_closed_before_the_process_ends(monkeypatch, capsys):
    events = []
    watched = Watched(monkeypatch, lambda: events.append("closed"))
    watched.answers = False
    watched.codes = events
    watched.watchdog._end_process = events.append
    watched.check(100)
    assert events == ["closed", ExitCode.HEAD_LOST]


@pytest.mark.parametrize(
    ("close_records", "message"),
    [
        (lambda: "s3://b lacks what came last (no route)", "gone; s3://b lacks what came last (no route), go on with"),
        (threading.Event().wait, "gone; what came last was not stored within 0 s and is in the study's folder alone"),
    ],
    ids=["an outage", "a storage that hangs"],
)
def test_what_is_not_stored_is_said(monkeypatch, capsys, close_records, message):
    monkeypatch.setattr(head_watchdog, "CLOSE_SECONDS", 0.05)
    watched = Watched(monkeypatch, close_records)
    watched.answers = False
    watched.check(100)
    assert watched.codes == [ExitCode.HEAD_LOST]
    assert message in capsys.readouterr().err


def test_an_answer_is_a_connection(server):
    watchdog = HeadWatchdog(f"127.0.0.1:{server.getsockname()[1]}", "mine")
    assert watchdog._answers(watchdog.address)
    server.close()
    assert not watchdog._answers(watchdog.address)


def test_a_driver_that_has_left_the_block_is_not_ended(monkeypatch, server):
    monkeypatch.setattr(head_watchdog, "CHECK_SECONDS", 0.02)
    codes: list[int] = []
    with HeadWatchdog(f"127.0.0.1:{server.getsockname()[1]}", "mine", end_process=codes.append) as watchdog:
        pass
    server.close()
    watchdog.thread.join(scaled())
    assert not watchdog.thread.is_alive()
    assert codes == []
