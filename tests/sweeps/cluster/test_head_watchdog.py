"""A cluster whose head is lost: the driver is ended with one line, and only then."""

from __future__ import annotations

import socket
import threading

import pytest

from lowrank.utils.cli import ExitCode
from sweeps.cluster import head_watchdog
from sweeps.cluster.head_watchdog import SILENCE_SECONDS, HeadWatchdog
from tests.support.waiting import scaled, wait_until


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds that the watchdog reads; it checks the head more often."""
    monkeypatch.setattr(head_watchdog, "CHECK_SECONDS", 0.02)
    now = [0.0]
    monkeypatch.setattr(head_watchdog, "monotonic_time", lambda: now[0])
    return now


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(scaled())
        yield listening


def test_a_lost_head_ends_the_driver_with_one_line(clock, server, capsys):
    address = f"127.0.0.1:{server.getsockname()[1]}"
    ended, codes = threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    def has_ended_after_silence() -> bool:
        clock[0] += SILENCE_SECONDS
        return ended.is_set()

    with HeadWatchdog(address, "mine", end):
        for _ in range(4):  # it answers, for longer than it may be silent
            server.accept()[0].close()
            clock[0] += SILENCE_SECONDS / 2
        assert not ended.is_set()
        server.close()
        wait_until(has_ended_after_silence, "the end of the driver")
    assert codes == [ExitCode.HEAD_LOST]
    message = f"error: the cluster's head at {address} is gone; nothing is lost, go on with --resume mine"
    assert capsys.readouterr().err == f"{message}\n"


def test_a_driver_that_has_left_the_block_is_not_ended(clock, server):
    codes: list[int] = []
    with HeadWatchdog(f"127.0.0.1:{server.getsockname()[1]}", "mine", codes.append) as watchdog:
        pass
    server.close()
    watchdog.thread.join(scaled())
    assert not watchdog.thread.is_alive()
    assert codes == []
