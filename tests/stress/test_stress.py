"""The stress runner runs each test as often as asked, beside busy processes, and names what failed how often."""

from __future__ import annotations

import pytest

from tests.stress.__main__ import main

TESTS = """
from pathlib import Path

def test_that_holds():
    with (Path(__file__).parent / "runs").open("a") as file:
        file.write("x")

def test_that_fails_now_and_then():
    assert (Path(__file__).parent / "runs").read_text() != "xx", "the second run"
"""


@pytest.fixture(autouse=True)
def _without_options_of_the_outer_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of this repository's own conftest are unknown where the runner is tried."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def test_a_failure_of_one_run_is_printed_and_fails_the_command(tmp_path, capsys):
    (tmp_path / "test_two.py").write_text(TESTS)
    arguments = ["-m", "not slow", "--times", "2", "--busy", "1", "--", "-p", "no:cacheprovider", str(tmp_path)]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["run 1 of 2: 2 tests, 0 failed", "run 2 of 2: 2 tests, 1 failed"]
    assert "test_two.test_that_fails_now_and_then failed 1 times in 2 runs; the last lines of the first:" in lines
    assert any("AssertionError: the second run" in line for line in lines)


def test_markers_that_no_test_has_are_an_error(tmp_path):
    (tmp_path / "test_two.py").write_text(TESTS)
    with pytest.raises(RuntimeError, match="no test has the markers 'slow'"):
        main(["-m", "slow", "--times", "1", "--busy", "0", "--", str(tmp_path)])
