"""The study of replayed trials in small: the real command, real records, no torch where trials run."""

from __future__ import annotations

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from benchmarks.studies.scale import COLUMNS, study, windows
from sweeps.records.events import Status
from sweeps.records.names import MLFLOW_FILE, RESULTS_FILE
from tests.support import studies
from tests.support.mlflow_store import trial_runs


def test_what_replays_needs_no_torch():
    code = "import sys, benchmarks.studies.replayed_trial; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=studies.ROOT, check=False).returncode == 0


def test_windows_are_differences_by_trial():
    first = dict.fromkeys((
        "wall", "cpu", "rss", "events", "journal_bytes", "carried_bytes", "tracker_cpu", "tracker_rss", "proposals",
        "proposal_seconds", "trials",
    ), 0)  # fmt: skip
    second = {**first, "trials": 10, "cpu": 2, "rss": 5e6, "proposals": 4, "proposal_seconds": 1, "journal_bytes": 3000}
    (row,) = windows([first, second])
    assert set(row) == set(COLUMNS)
    assert (row["trials"], row["driver ms a trial"], row["KB a trial"]) == ("0 to 10", 200, 500)
    assert (row["proposal ms"], row["tracker behind KB"]) == (250, 3)


@pytest.mark.slow
def test_forty_trials_on_eight_pretended_gpus(tmp_path):
    found = study(tmp_path, 40, 8)
    trials = studies.record(tmp_path / "scale").trials
    assert len(trials) == 40
    assert {trial.status for trial in trials.values()} <= {Status.COMPLETED, Status.STOPPED}
    assert 2 <= found["workers"] <= 8
    assert pq.read_table(tmp_path / "scale" / RESULTS_FILE).num_rows == 40
    assert {name: len(runs) for name, runs in trial_runs(tmp_path / "scale" / MLFLOW_FILE).items()} == dict.fromkeys(
        trials, 1
    )
    assert [row["trials"] for row in found["rows"]] == [20, 40]
