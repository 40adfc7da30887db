"""The summary's process starts before the end, waits until it is asked, and never outlives the driver's block."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.study import driver, summary_process
from sweeps.study.summary_process import SummaryProcess

# Stands for `python -m analysis summary STUDY --when-asked`
SCRIPT = """
import sys
folder = sys.argv[1]
assert sys.argv[2:] == ["--when-asked"]
open(folder + "/started", "a").write("1")
if sys.stdin.readline():
    open(folder + "/asked", "w").close()
    sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study whose summary is `SCRIPT`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(
        summary_process, "module_command", lambda module, command, *words: [sys.executable, script, *words]
    )
    return tmp_path


@pytest.mark.parametrize("is_early", [True, False])
def test_a_summary_is_printed_once_whether_its_process_was_started_before_or_not(folder: Path, is_early: bool) -> None:
    with SummaryProcess(folder) as summary:
        if is_early:
            summary.start()
            summary.start()
        assert summary.run() == 3
    assert (folder / "started").read_text() == "1"
    assert (folder / "asked").exists()


def test_a_process_that_is_never_asked_ends_with_the_block(folder: Path) -> None:
    with SummaryProcess(folder) as summary:
        summary.start()
        assert summary._process is not None
        pid = summary._process.pid
    assert not (folder / "asked").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("is_exhausted", "running", "starts"), [(False, 1, 0), (True, 2, 0), (True, 1, 1)],
    ids=["more trials come", "no slot is free", "the last trials leave a slot free"],
)  # fmt: skip
def test_the_process_starts_when_the_last_trials_leave_a_slot_free(
    is_exhausted: bool, running: int, starts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[bool] = []
    search: Any = SimpleNamespace(
        is_exhausted=lambda: is_exhausted, count_running=lambda: running, is_over=lambda: True,
        space=SimpleNamespace(question="", resources=SimpleNamespace(max_concurrent=None)),
        resolver=SimpleNamespace(teacher=None), record=SimpleNamespace(trials={}),
    )  # fmt: skip
    share = SimpleNamespace(concurrent=2)
    monkeypatch.setattr("sweeps.teachers.build_caches", lambda *_: None)
    monkeypatch.setattr("sweeps.execution.run_search", lambda search, config: bool(config.on_change()))
    config: Any = SimpleNamespace(name="a", folder=tmp_path, storage=None, address=None, data_dir=None, seconds=None)
    hooks: Any = SimpleNamespace(tracking_error=lambda: None, before_exit=None)
    resources: Any = SimpleNamespace(share=share, growing=None)
    summary: Any = SimpleNamespace(start=lambda: started.append(True))
    assert driver._train(search, config, resources, 8, hooks, summary) is driver.CloseReason.FINISHED
    assert len(started) == starts
