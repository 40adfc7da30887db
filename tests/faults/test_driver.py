"""The driver is interrupted in mid-study: nothing is lost, nothing is doubled. Kills: see test_injections."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeps.records.events import TERMINAL
from tests.support import studies

pytestmark = [pytest.mark.faults, pytest.mark.study]

LONGER = (*studies.TINY[:-1], "6", "--set", "train.epochs=4", "--set", "search.stop=none")


def check_once_each(folder: Path, trials: int) -> None:
    record = studies.record(folder)
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    ends = [event["trial"] for event in events if event["event"] == "finished"]
    epochs = [(event["trial"], event["epoch"]) for event in events if event["event"] == "epoch"]
    assert len(record.trials) == trials
    assert all(trial.status in TERMINAL for trial in record.trials.values())
    assert len(ends) == len(set(ends)) == trials
    assert len(epochs) == len(set(epochs)) == 4 * trials
    assert pq.read_table(folder / "results.parquet").num_rows == trials


@pytest.fixture
def study(tmp_path):
    """A study at work, with two trials ended; whatever is left of it goes at the end."""
    with studies.running(*LONGER, "--out", str(tmp_path), "--name", "hit") as process:
        studies.wait_until(lambda: studies.ended(tmp_path / "hit") >= 2)
        yield tmp_path / "hit", process


@pytest.mark.parametrize("how", ["Ctrl-C", "kill"])
def test_a_study_that_is_told_to_end_stops_cleanly_and_says_how_to_go_on(study, how):
    folder, process = study
    if how == "kill":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "python sweeps/run.py --resume hit" in said
    assert "Traceback" not in said
    assert studies.record(folder).closed["reason"] == "interrupted"
    done = studies.run("--resume", "hit", "--out", str(folder.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    check_once_each(folder, 7)


def test_a_batch_systems_end_of_all_processes_is_an_interruption(study):
    folder, process = study
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted, and so was Ray; nothing is lost, go on with --resume hit"
    assert "Traceback" not in said
    done = studies.run("--resume", "hit", "--out", str(folder.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    check_once_each(folder, 7)


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_to_be_told_while_ray_starts_leaves_no_traceback(told, tmp_path):
    with studies.running(*LONGER, "--out", str(tmp_path), "--name", "early") as process:
        time.sleep(6)
        os.killpg(process.pid, told)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
