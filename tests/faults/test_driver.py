"""The driver is interrupted in mid-study: nothing is lost, nothing is doubled. Kills: see test_injections."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sweeps.records.events import TERMINAL
from sweeps.records.names import JOURNAL_FILE
from tests.support import studies
from tests.support.processes import command_line, descendant_pids
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.study]

# One trial at a time; two are interrupted in test_injections
LONGER = (
    *studies.TINY[:-1], "6", "--set", "train.epochs=4", "--set", "search.stop=none",
    "--set", "resources.max_concurrent=1",
)  # fmt: skip


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
        studies.wait_until_ended(tmp_path / "hit", 2, process)
        yield tmp_path / "hit", process


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("kill", marks=pytest.mark.slow)])
def test_a_study_that_is_told_to_end_stops_cleanly_and_says_how_to_go_on(study, how):
    folder, process = study
    if how == "kill":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    said = studies.finish(process)
    assert process.returncode == 130, said
    assert "python sweeps/run.py --resume hit" in said
    assert "Traceback" not in said
    assert studies.record(folder).closed["reason"] == "interrupted"
    done = studies.run("--resume", "hit", "--out", str(folder.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    check_once_each(folder, 7)


@pytest.mark.slow
def test_a_batch_systems_end_of_all_processes_is_an_interruption(study):
    folder, process = study
    os.killpg(process.pid, signal.SIGTERM)
    said = studies.finish(process)
    assert process.returncode == 130, said
    command = f"python sweeps/run.py --resume hit --out {folder.parent}"
    assert said.splitlines()[-1] in (  # either its main thread sees the signal first or its watch of Ray
        f"interrupted; nothing is lost. Go on with: {command}",
        f"interrupted, and so was Ray; nothing is lost, go on with: {command}",
    )
    assert "Traceback" not in said
    done = studies.run("--resume", "hit", "--out", str(folder.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    check_once_each(folder, 7)


@pytest.mark.parametrize(
    ("signal_number", "started"),
    [
        (signal.SIGINT, "gcs_server"),  # the first process that Ray starts
        (signal.SIGTERM, "raylet"),  # the last
        pytest.param(signal.SIGTERM, "gcs_server", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "raylet", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_ray_starts_leaves_no_traceback(signal_number, started, tmp_path):
    with studies.running(*LONGER, "--out", str(tmp_path), "--name", "early") as process:
        wait_until(
            lambda: any(f"/{started} " in command_line(pid) for pid in descendant_pids(process.pid)),
            f"{started}, which Ray starts", unless=lambda: studies.has_ended(process),
        )  # fmt: skip
        assert not (tmp_path / "early" / JOURNAL_FILE).exists()  # Ray has not started yet
        os.killpg(process.pid, signal_number)
        said = studies.finish(process)
    assert process.returncode == 130, said
    assert "Traceback" not in said
