"""Studies run in containers and batch systems: no home, an unknown user, a terminal of ASCII, odd folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.records.names import FRONT_PICTURE, MLFLOW_FILE
from tests.support.mlflow_store import rows
from tests.support.studies import ROOT, TINY, record
from tests.support.waiting import scaled

UNKNOWN_USER = 54_321  # without an entry of its own in /etc/passwd
AS_NOBODY = ["unshare", "--user", f"--map-user={UNKNOWN_USER}", f"--map-group={UNKNOWN_USER}"]
SMALL = [*TINY[:-1], "1", "--set", "references=[]", "--set", "train.epochs=1", "--set", "search.stop=none"]


def may_be_nobody() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*AS_NOBODY, "true"], check=False).returncode == 0


@pytest.fixture
def bare_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Nothing but a path, a terminal of ASCII and a long temporary folder."""
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    threads = {"OMP_NUM_THREADS": "1"}
    yield {"PATH": os.environ["PATH"], "TMPDIR": str(temporary), "PYTHONIOENCODING": "ascii", **threads}
    shutil.rmtree(f"/tmp/lowrank-{UNKNOWN_USER}", ignore_errors=True)


def run(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*AS_NOBODY, sys.executable, str(ROOT / "sweeps" / "run.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=scaled(300), check=False
    )


def run_analysis(environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The summary of a study by a command of its own, which writes into MLflow too."""
    command = [*AS_NOBODY, sys.executable, "-m", "analysis", "summary", str(folder)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**environment, "PYTHONPATH": str(ROOT)}, cwd=folder.parent,
        timeout=scaled(120), check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_user_whom_nobody_knows_plans_a_study(bare_environment, tmp_path):
    if not may_be_nobody():
        pytest.skip("this machine makes no users")
    done = run(bare_environment, tmp_path, *SMALL, "--plan")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials: " in done.stdout
    assert done.stderr.startswith("this user has no home; what belongs there goes to ")
    assert done.stderr.count("\n") == 1
    done.stdout.encode("ascii")


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.timeout(900)
@pytest.mark.parametrize("home", [None, "/proc/1"], ids=["no home", "a home that cannot be written"])
def test_a_user_whom_nobody_knows_runs_a_study_in_an_odd_folder(bare_environment, tmp_path, home):
    if not may_be_nobody():
        pytest.skip("this machine makes no users")
    environment = bare_environment | ({"HOME": home} if home else {})
    out = tmp_path / "50% of $5 #1"
    question = "Is it worth from $5 to $6, ± 10%?"
    arguments = [*SMALL, "--out", str(out), "--name", "odd", "--set", f"question='{question}'"]
    done = run(environment, tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert "atplotlib" not in output
    assert ("this user has no home; what belongs there goes to " in done.stderr) == (home is None)
    again = run_analysis(environment, out / "odd")
    assert again.returncode == 0, again.stdout + again.stderr
    folder = out / "odd"
    assert record(folder).header.question == question
    assert rows(folder / MLFLOW_FILE, "select count(*) from runs") == [(2,)]
    assert (folder / FRONT_PICTURE).stat().st_size > 10_000
    assert f"mlflow ui --backend-store-uri 'sqlite:///{out.name}/odd/mlflow.db'" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {out.name, Path(environment["TMPDIR"]).name}


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.timeout(900)
def test_a_study_is_recorded_where_mlflows_own_variable_says(bare_environment, tmp_path):
    if not may_be_nobody():
        pytest.skip("this machine makes no users")
    uri = f"sqlite:///{tmp_path}/team.db"
    done = run({**bare_environment, "MLFLOW_TRACKING_URI": uri}, tmp_path, *SMALL, "--out", "studies", "--name", "a")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"recording into {uri}, as MLFLOW_TRACKING_URI says" in done.stdout
    assert rows(tmp_path / "team.db", "select count(*) from runs") == [(2,)]
    assert not (tmp_path / "studies" / "a" / MLFLOW_FILE).exists()
