"""A cluster whose head is lost: the driver is ended with one line, and only then."""

from __future__ import annotations

import socket
import threading

import pytest

from lowrank.utils.cli import ExitCode
from sweeps.cluster import head_watchdog
from sweeps.cluster.head_watchdog import HeadWatchdog


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(head_watchdog, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(head_watchdog, "SILENCE_SECONDS", 0.2)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_lost_head_ends_the_driver_with_one_line(quick, server, capsys):
    address = f"127.0.0.1:{server.getsockname()[1]}"
    ended, codes = threading.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with HeadWatchdog(address, "mine", end):
        assert not ended.wait(0.5)  # it answers, for longer than it may be silent
        server.close()
        assert ended.wait(20)
    assert codes == [ExitCode.HEAD_LOST]
    message = f"error: the cluster's head at {address} is gone; nothing is lost, go on with --resume mine"
    assert capsys.readouterr().err == f"{message}\n"


def test_a_driver_that_has_left_the_block_is_not_ended(quick, server):
    codes: list[int] = []
    with HeadWatchdog(f"127.0.0.1:{server.getsockname()[1]}", "mine", codes.append) as watchdog:
        pass
    server.close()
    watchdog.thread.join(20)
    assert not watchdog.thread.is_alive()
    assert codes == []
