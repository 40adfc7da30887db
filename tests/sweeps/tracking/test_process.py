"""The tracker as a process of its own: killed, cut off from its server, left by its driver."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from lowrank.errors import InputError
from lowrank.utils import hold_lock
from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, MLFLOW_FILE, RESULTS_FILE, TRACKING_LOG_FILE
from sweeps.tracking import process as process_module
from sweeps.tracking.__main__ import LOCK_FILE
from sweeps.tracking.process import TrackingProcess, read_progress, records_behind
from sweeps.tracking.uri import check_tracking_uri
from tests.support.mlflow_store import content, epoch_metrics, journal_metrics, parent_status, rows, trial_runs
from tests.support.processes import is_running
from tests.support.servers import free_port, mlflow_server
from tests.support.specifications import plain_specification
from tests.support.synthetic_study import Plan, header, metrics, write_study
from tests.support.waiting import scaled, wait_until

ROOT = Path(__file__).resolve().parents[3]


def catch_up(study_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeps.tracking", str(study_dir), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scaled(), check=False)


def begin(study_dir: Path, trials: int = 4) -> tuple[Journal, list[str]]:
    """A driver's journal with `trials` trials under way."""
    journal = Journal(study_dir / JOURNAL_FILE)
    journal.append(Event.STUDY, **header(Plan(seed=1)))
    names = [f"{number:016x}" for number in range(trials)]
    for name in names:
        journal.append(
            Event.PROPOSED, trial=name, role="search", stratum="any size", parameters={"method.name": "cp"},
            specification=plain_specification(method={"name": "cp"}), counts={"params": 1000, "mult_adds": 2000},
            proposal={},
        )  # fmt: skip
        journal.append(Event.ATTEMPT, trial=name)
    return journal, names


def train(journal: Journal, names: list[str], epochs: range) -> None:
    for epoch in epochs:
        for name in names:
            journal.append(Event.EPOCH, trial=name, epoch=epoch, metrics=metrics(100 / epoch, epoch))


def wait_until_carried(study_dir: Path, tracking: TrackingProcess) -> None:
    """Wait until the tracker has carried all of the journal; it must go on meanwhile."""
    wait_until(
        lambda: records_behind(study_dir) == 0,
        "all records to be carried",
        unless=lambda: "it has ended" if tracking.process.poll() is not None else "",
    )


def end(journal: Journal, names: list[str]) -> None:
    for name in names:
        journal.append(Event.FINISHED, sync=True, trial=name, status="completed", reason="")
    journal.append(Event.CLOSED, sync=True, reason="finished")
    journal.close()


def assert_complete(study_dir: Path, database: Path) -> None:
    assert epoch_metrics(database) == journal_metrics(study_dir)
    assert all(runs == ["FINISHED"] for runs in trial_runs(database).values())
    assert parent_status(database) == ["FINISHED"]


def test_follows_a_sweep_to_its_end_and_ctrl_c_is_not_for_it(tmp_path):
    journal, names = begin(tmp_path)
    tracking = TrackingProcess.start(tmp_path)
    train(journal, names, range(1, 4))
    wait_until((tmp_path / RESULTS_FILE).exists, "the tables")  # the tracker is at work
    os.kill(tracking.process.pid, signal.SIGINT)
    train(journal, names, range(4, 5))
    wait_until_carried(tmp_path, tracking)
    train(journal, names, range(5, 6))
    end(journal, names)
    assert tracking.finish(scaled()) is None
    assert_complete(tmp_path, tmp_path / MLFLOW_FILE)
    assert pq.read_table(tmp_path / EPOCHS_FILE).num_rows == 20
    assert (tmp_path / TRACKING_LOG_FILE).read_text() == ""  # nothing printed, no warning


def test_a_dead_server_costs_the_driver_nothing_and_the_tables_are_there(tmp_path):
    journal, names = begin(tmp_path)
    tracking = TrackingProcess.start(tmp_path, "http://127.0.0.1:9")
    train(journal, names, range(1, 3))
    end(journal, names)
    wait_until(lambda: read_progress(tmp_path).get("error"), "a failure to reach the server")
    wait_until((tmp_path / EPOCHS_FILE).exists, "the tables")
    message = tracking.finish(0.5)
    assert message.startswith("MLflow is 22 records behind (no answer from http://127.0.0.1:9)")
    assert message.endswith("--tracking-uri http://127.0.0.1:9")
    assert pq.read_table(tmp_path / EPOCHS_FILE).num_rows == 8


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_loses_and_doubles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "REPORT_SECONDS", 0.0)
    journal, names = begin(tmp_path)
    tracking = TrackingProcess.start(tmp_path)
    train(journal, names, range(1, 3))
    wait_until_carried(tmp_path, tracking)
    tracking.process.kill()
    tracking.process.wait()
    train(journal, names, range(3, 4))
    assert tracking.new_error().endswith("was killed; it is started again")
    wait_until_carried(tmp_path, tracking)
    tracking.process.kill()
    end(journal, names)
    assert tracking.finish(scaled()) is None
    assert_complete(tmp_path, tmp_path / MLFLOW_FILE)
    assert pq.read_table(tmp_path / EPOCHS_FILE).num_rows == 12


def test_a_process_that_is_killed_again_and_again_is_given_up(tmp_path, monkeypatch):
    started = []
    killed = SimpleNamespace(poll=lambda: -9, wait=lambda timeout: -9)
    monkeypatch.setattr(process_module, "_start_process", lambda *arguments: started.append(arguments) or killed)
    monkeypatch.setattr(process_module, "behind_message", lambda *_: "behind")
    tracking = TrackingProcess.start(tmp_path)
    assert tracking.new_error().endswith("was killed; it is started again")
    assert tracking.new_error() is None  # not so soon
    assert len(started) == 2
    assert tracking.finish(1) == "behind"
    assert len(started) == 1 + process_module.MAX_RESTARTS
    assert len(set(started)) == 1
    tracking._next_report = 0.0
    assert tracking.new_error() is None


def test_a_study_goes_on_where_a_killed_process_cannot_be_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "REPORT_SECONDS", 0.0)

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(process_module, "_start_process", fail)
    tracking = TrackingProcess(SimpleNamespace(poll=lambda: -9), tmp_path, "http://host")  # type: ignore[arg-type]
    lines = [tracking.new_error() for _ in range(process_module.MAX_RESTARTS + 2)]
    assert [line.endswith("does not start again: [Errno 12] Cannot allocate memory") for line in lines[:-2]] == (
        [True] * process_module.MAX_RESTARTS
    )
    assert lines[-2:] == [
        "the process that writes tables and MLflow's records was killed once more and is not started again; the "
        "records wait in the journal", None,
    ]  # fmt: skip


def test_a_process_that_is_started_again_at_the_end_has_only_the_time_that_remains(tmp_path, monkeypatch):
    now, limits = [0.0], []

    def wait(timeout: float) -> int:
        limits.append(timeout)
        now[0] += 8.0
        return -9

    killed = SimpleNamespace(poll=lambda: -9, wait=wait)
    monkeypatch.setattr(process_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(process_module, "_start_process", lambda *_: killed)
    monkeypatch.setattr(process_module, "behind_message", lambda *_: "behind")
    assert TrackingProcess(killed, tmp_path, "http://host").finish(20.0) == "behind"  # type: ignore[arg-type]
    assert limits[:4] == [20.0, 12.0, 4.0, 0.0]


@pytest.mark.slow
def test_an_older_end_is_not_the_end_of_a_resumed_sweep(tmp_path):
    write_study(tmp_path, Plan(trials=2, epochs=2, closed="interrupted"))
    tracking = TrackingProcess.start(tmp_path)
    wait_until_carried(tmp_path, tracking)  # the older end with all before it
    journal, names = begin(tmp_path)
    for epoch in (1, 2, 3):  # each is carried by a tracker that has looked at the journal's end and gone on
        train(journal, names, range(epoch, epoch + 1))
        wait_until_carried(tmp_path, tracking)
    end(journal, names)
    assert tracking.finish(scaled()) is None
    assert epoch_metrics(tmp_path / MLFLOW_FILE) == journal_metrics(tmp_path)
    assert len(parent_status(tmp_path / MLFLOW_FILE)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_again_and_again_every_metric_is_there_exactly_once(tmp_path, seed):
    rng = random.Random(seed)
    write_study(tmp_path, Plan(trials=40, epochs=8, endings=False))
    database, total = tmp_path / MLFLOW_FILE, sum(journal_metrics(tmp_path).values())
    moments = [0, *sorted(rng.sample(range(1, int(0.8 * total)), 5))]  # metrics stored; 0: while the tables are made
    killed_at = []
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-m", "sweeps.tracking", str(tmp_path)], cwd=ROOT)
        wait_until(
            lambda moment=moment: database.exists() and metrics_stored(database) >= moment, f"{moment} stored metrics",
            poll_seconds=0.01, unless=lambda process=process: "it has ended" if process.poll() is not None else "",
        )  # fmt: skip
        process.kill()
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
        killed_at.append(metrics_stored(database))
    assert sum(0 < stored < total for stored in killed_at) >= 2, killed_at  # half-written
    done = catch_up(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_complete(tmp_path, tmp_path / MLFLOW_FILE)
    stored = list((tmp_path / "mlflow_artifacts").rglob("trial.json"))
    assert len(stored) == len(trial_runs(tmp_path / MLFLOW_FILE))
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / JOURNAL_FILE).write_bytes((tmp_path / JOURNAL_FILE).read_bytes())
    assert catch_up(reference).returncode == 0
    assert content(tmp_path / MLFLOW_FILE) == content(reference / MLFLOW_FILE)


@pytest.mark.slow
def test_when_the_driver_is_killed_the_tracker_brings_in_the_rest_and_goes(tmp_path):
    driver = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from sweeps.tracking.process import TrackingProcess
        from sweeps.records.names import RESULTS_FILE
        from tests.support.waiting import wait_until
        from tests.sweeps.tracking.test_process import begin, train
        study_dir = Path({str(tmp_path)!r})
        journal, names = begin(study_dir)
        print(TrackingProcess.start(study_dir).process.pid, flush=True)
        train(journal, names, range(1, 4))
        wait_until((study_dir / RESULTS_FILE).exists, "the tables")  # the tracker is at work
        train(journal, names, range(4, 6))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    found = subprocess.run([sys.executable, "-c", driver], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert found.returncode == -signal.SIGKILL
    wait_until(lambda: not is_running(int(found.stdout)), "the end of the tracker")
    assert epoch_metrics(tmp_path / MLFLOW_FILE) == journal_metrics(tmp_path)
    assert set(map(tuple, trial_runs(tmp_path / MLFLOW_FILE).values())) == {("KILLED",)}
    assert parent_status(tmp_path / MLFLOW_FILE) == ["KILLED"]


def metrics_stored(database: Path) -> int:
    try:
        return rows(database, "select count(*) from metrics")[0][0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(600)  # three starts of a server
def test_a_server_that_dies_and_comes_back_has_everything_in_the_end(tmp_path):
    port, folder, study_dir = free_port(), tmp_path / "server", tmp_path / "study"
    database, uri = folder / "mlflow.db", f"http://127.0.0.1:{port}"
    with mlflow_server(folder, port):
        journal, names = begin(study_dir)
        tracking = TrackingProcess.start(study_dir, uri)
        train(journal, names, range(1, 4))
        wait_until(lambda: metrics_stored(database) > 30, "stored metrics")
    train(journal, names, range(4, 9))  # while nobody listens
    wait_until(lambda: read_progress(study_dir).get("error"), "a failure to reach the server")
    assert tracking.process.poll() is None
    before = metrics_stored(database)
    with mlflow_server(folder, port):
        wait_until(lambda: metrics_stored(database) > before, "more stored metrics")
        train(journal, names, range(9, 11))
        end(journal, names)
        assert tracking.finish(scaled()) is None
    assert_complete(study_dir, database)
    with mlflow_server(folder, port):
        (study_dir / "tracking.json").unlink()
        assert catch_up(study_dir, "--tracking-uri", uri).returncode == 0
    assert_complete(study_dir, database)


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_is_refused_and_does_not_hang_the_end(tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="no answer within 3 s"):
            check_tracking_uri(uri)
        write_study(tmp_path, Plan(trials=2, epochs=2))
        done = catch_up(tmp_path, "--tracking-uri", uri)  # which would end this test if it hung
    assert done.returncode == 1
    assert done.stderr.startswith("MLflow is ")
    assert done.stderr.count("\n") == 1
    assert pq.read_table(tmp_path / RESULTS_FILE).num_rows == 6


def test_a_tracker_that_waits_for_another_one_ends_with_its_driver(tmp_path):
    """The driver that it is given is not its parent: it has ended."""
    study = write_study(tmp_path / "study", Plan(trials=2))
    with hold_lock(study / LOCK_FILE):
        done = catch_up(study, "--follow", "--parent", "1")
    assert (done.returncode, done.stderr) == (1, "another process is carrying this study into MLflow already\n")
