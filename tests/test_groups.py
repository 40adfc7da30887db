"""Tests that run in several processes: no two studies at once, and the tests of a file together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.environment import python_path
from tests.support.groups import STUDIES, group_of
from tests.support.studies import ROOT

STUDY = """
import os
from pathlib import Path

import pytest

@pytest.mark.MARKER
@pytest.mark.parametrize("number", [0, 1])
def test_study(number):
    with (Path(__file__).parent / "processes").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_all_files_with_studies_are_one_group_and_each_other_file_is_one():
    study, other = "tests/end_to_end/test_distillation.py", "tests/test_groups.py"
    assert group_of(f"{study}::test_any", ROOT, parallel_studies=False) == STUDIES
    assert group_of(f"{study}::test_any", ROOT, parallel_studies=True) == study
    assert group_of(f"{other}::TestAny::test_any[a/b.py::c]", ROOT, parallel_studies=False) == "tests/test_groups.py"


def test_no_two_studies_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import *")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 300\nmarkers =\n    study: starts Ray\n")
    for name in ("test_one.py", "test_two.py", "test_three.py"):
        (tmp_path / name).write_text(STUDY.replace("MARKER", "study"))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": python_path(), "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "6 passed" in run.stdout, run.stdout + run.stderr
    assert len(set((tmp_path / "processes").read_text().split())) == 1
