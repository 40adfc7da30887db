"""One process holds a lock at a time, and its death frees it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lowrank.utils.locks import LockedError, hold_lock

HOLDER = """
import sys
from pathlib import Path
from lowrank.utils.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()  # until the test ends
"""


@contextmanager
def _held_by_another_process(path: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_lock_that_is_held_is_refused_at_once_or_after_the_time_limit(tmp_path):
    path = tmp_path / "x.lock"
    with _held_by_another_process(path):
        waits = []
        with pytest.raises(LockedError, match="is locked by another process"), hold_lock(path, timeout=0):
            pass
        tries = []
        with (
            pytest.raises(LockedError),
            hold_lock(path, timeout=0.3, on_wait=lambda: waits.append(1), cancelled=lambda: tries.append(1)),
        ):
            pass
        assert len(tries) >= 2  # it has tried again until the limit
        assert waits == [1]
        with pytest.raises(LockedError), hold_lock(path, cancelled=lambda: True):
            pass


def test_the_death_of_its_holder_frees_a_lock(tmp_path):
    path = tmp_path / "x.lock"
    with _held_by_another_process(path) as process, hold_lock(path, on_wait=process.kill, poll_seconds=0.01):
        pass


def test_a_lock_is_free_after_the_block_and_after_its_release(tmp_path):
    path = tmp_path / "x.lock"
    with hold_lock(path) as lock:
        with pytest.raises(LockedError), hold_lock(path, timeout=0):
            pass
        lock.release()
        with hold_lock(path, timeout=0):
            pass
    with hold_lock(path, timeout=0):
        pass
    assert path.exists()
