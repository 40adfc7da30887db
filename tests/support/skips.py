"""Fails a run of the tests in which a test is skipped that no list allows."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest


def read_allowed_skips(path: Path | None) -> list[str] | None:
    """Return the patterns of a file, one a line; None without a file. Empty lines and those with # are comments."""
    if path is None:
        return None
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class SkipPolicy:
    """A pytest plugin that compares the skipped tests with those that may be."""

    def __init__(self, allowed: list[str]):
        """`allowed`: patterns of `PATH: REASON`, in which * matches any text."""
        self.allowed = allowed
        self.forbidden: set[str] = set()
        self.notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that is skipped while it runs."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that is skipped as a whole."""
        if report.skipped:
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        _, _, reason = report.longrepr  # type: ignore[misc]  # path, line and reason of a skip
        line = f"{report.nodeid.partition('::')[0]}: {str(reason).removeprefix('Skipped: ')}"
        if not any(fnmatchcase(line, pattern) for pattern in self.allowed):
            self.forbidden.add(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over what a process of xdist left out; all leave out the same."""
        names = getattr(node, "workeroutput", {}).get("left_out")
        note = f"left out, they need more GPUs: {names}"
        if names and note not in self.notes:
            self.notes.append(note)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that is otherwise green."""
        if self.forbidden and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which skips are not allowed, and what was left out."""
        for note in self.notes:
            terminalreporter.write_line(note)
        for line in sorted(self.forbidden):
            terminalreporter.write_line(f"not allowed to be skipped: {line}", red=True)
