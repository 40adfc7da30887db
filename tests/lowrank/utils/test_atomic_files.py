"""A file is there with its old content or its new one, whatever happens to the writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from lowrank.utils import atomic_files as module
from lowrank.utils.atomic_files import (
    MAX_AGE_SECONDS,
    atomic_folder,
    atomic_path,
    atomic_write,
    temporary_path,
    write_bytes,
    write_text,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from lowrank.utils.atomic_files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half of the new content")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _kill_a_writer(path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert process.returncode == -signal.SIGKILL


def _fail_in_the_middle(file: IO[str]) -> None:
    file.write("half")
    file.close()
    raise ValueError("in the middle")


def test_text_is_utf_8_and_bytes_stay(tmp_path):
    path = tmp_path / "file"
    write_text(path, "µ\n")
    assert path.read_bytes() == "µ\n".encode()
    write_bytes(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    with atomic_write(path, "w", newline="") as file:
        file.write("a\r\n")
    assert path.read_bytes() == b"a\r\n"
    assert os.listdir(tmp_path) == ["file"]


def test_a_kill_in_the_middle_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    for _ in range(2):
        _kill_a_writer(path)
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2  # the second writer has removed what the first left
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_in_the_block_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ValueError, match="in the middle"), atomic_write(path, "w") as file:
        _fail_in_the_middle(file)
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (steps.append(Path(f"/proc/self/fd/{number}").readlink()), fsync(number))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("replace"), replace(old, new)))
    write_text(tmp_path / "file", "text")
    temporary, rename, folder = steps
    assert temporary.name.endswith(".tmp")
    assert rename == "replace"
    assert folder == tmp_path


def test_leftovers_of_running_writers_and_of_other_hosts_stay_for_an_hour(tmp_path, monkeypatch):
    target = tmp_path / "file"
    running = temporary_path(target)
    monkeypatch.setattr(module.platform, "node", lambda: "another.host")
    foreign = temporary_path(target)
    monkeypatch.undo()
    unrelated = tmp_path / "mine.tmp"
    for path in (running, foreign, unrelated):
        path.write_text("")
    write_text(target, "1")
    assert running.exists()
    assert foreign.exists()
    old = time.time() - MAX_AGE_SECONDS - 10
    for path in (running, foreign, unrelated):
        os.utime(path, (old, old))
    write_text(target, "2")
    assert sorted(os.listdir(tmp_path)) == ["file", "mine.tmp"]


def test_two_writers_at_once_never_mix_their_contents(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([65 + writer]) * 100_000 for writer in range(4)]
    write_bytes(path, contents[0])
    seen = set()

    def write(content: bytes) -> None:
        for _ in range(20):
            write_bytes(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_bytes())
    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["file"]


def test_a_long_name_has_room_for_the_temporary_part(tmp_path):
    path = tmp_path / ("n" * 250)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_only_the_two_modes_of_writing(tmp_path):
    with pytest.raises(ValueError, match="mode must be 'w' or 'wb', but got 'a'"), atomic_write(tmp_path / "file", "a"):
        pass


def test_a_folder_comes_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(ValueError, match="in the middle"), atomic_folder(path) as temporary:
        _fail_in_the_middle((temporary / "file").open("w"))
    assert os.listdir(tmp_path) == []
    with atomic_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("text")
    assert (path / "inner" / "file").read_text() == "text"
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as temporary:
        (temporary / "file").write_text("text")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_is_replaced_only_once_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("text")
    with pytest.raises(ValueError, match="in the middle"), atomic_folder(path, replace=True) as temporary:
        _fail_in_the_middle((temporary / "file").open("w"))
    assert os.listdir(path) == ["old"]
    with atomic_folder(path, replace=True) as temporary:
        (temporary / "new").write_text("text")
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]
