"""The disk of the tracking store is full in mid-sweep, through the real command: nothing is missing or double."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sweeps.records.events import Status
from tests.support import studies
from tests.support.mlflow_store import epoch_metrics, journal_metrics, parent_status, trial_runs
from tests.support.servers import fill, may_mount, small_disk
from tests.support.waiting import scaled, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.study]

SIX = (*studies.TINY[:-1], "6", "--set", "train.epochs=6", "--set", "search.stop=none")
on_a_small_disk = pytest.mark.skipif(not may_mount(), reason="a small disk can only be mounted by root")


def of_epochs(database: Path) -> Counter[tuple]:
    """What the store holds of epochs; the test error is logged at the last epoch's step, beside them."""
    return Counter({key: times for key, times in epoch_metrics(database).items() if key[1] != "test_error"})


def assert_nothing_missing_or_double(folder: Path, database: Path, trials: int) -> None:
    record = studies.record(folder)
    assert len(record.trials) == trials
    assert {trial.status for trial in record.trials.values()} == {Status.COMPLETED}
    assert trial_runs(database) == {name: ["FINISHED"] for name in record.trials}
    assert parent_status(database) == ["FINISHED"]
    assert of_epochs(database) == journal_metrics(folder)
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert Counter(event["trial"] for event in events if event["event"] == "finished") == Counter(list(record.trials))


def catch_up(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeps.tracking", str(folder), *options]
    return subprocess.run(command, cwd=studies.ROOT, capture_output=True, text=True, timeout=scaled(180), check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@on_a_small_disk
def test_the_disk_of_the_tracking_store_is_full_in_mid_sweep(tmp_path):
    folder = tmp_path / "hit"
    with small_disk(tmp_path / "disk", 8) as disk:
        database = disk / "mlflow.db"
        uri = f"sqlite:///{database}"
        with studies.running(*SIX, "--out", str(tmp_path), "--name", "hit", "--tracking-uri", uri) as sweep:
            wait_until(lambda: database.exists() and len(trial_runs(database)) >= 1, "a trial in the tracking store")
            assert len(trial_runs(database)) < 7  # the sweep goes on
            ballast = fill(disk)
            said = studies.finish(sweep, 300)
        assert sweep.returncode == 0, said  # the sweep itself has lost nothing
        assert "nothing is lost, catch up with: python -m sweeps.tracking" in said
        assert "Traceback" not in said
        assert catch_up(folder).returncode == 1  # still full
        ballast.unlink()
        done = catch_up(folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert_nothing_missing_or_double(folder, database, 7)
