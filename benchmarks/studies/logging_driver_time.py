"""What a report costs the driver: the journal, against Ray's MLflow callback writing to SQLite itself.

    python -m benchmarks.studies.logging_driver_time [--trials 20] [--reports 20] [--server]

Both get the same metrics of the same trials. Meanwhile the tracking process copies the journal to MLflow, as in a
sweep. With --server both write to an MLflow server on this machine.
"""

from __future__ import annotations

import datetime
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lowrank.utils import OneLineParser
from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE
from sweeps.tracking.process import TrackingProcess
from sweeps.tracking.uri import TRACKING_VARIABLE, check_tracking_uri
from tests.support.environment import changed_environment
from tests.support.servers import LIGHT
from tests.support.specifications import plain_specification
from tests.support.synthetic_study import Plan, header, metrics


class StandInTrial:
    """What Ray's callback asks of a trial."""

    def __init__(self, number: int):
        self.number, self.config, self.local_path = number, {"method": "cp", "dims": number % 5}, ""

    def __str__(self) -> str:
        return f"trial_{self.number:04d}"


def timed(calls: list[Callable[[], object]]) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return times


def through_journal(folder: Path, uri: str | None, trials: int, reports: int) -> tuple[list[float], str | None]:
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, sync=True, **header(Plan()))
    tracking = TrackingProcess.start(folder, uri)
    names = [f"{number:016x}" for number in range(trials)]
    for name in names:
        journal.append(
            Event.PROPOSED, trial=name, role="search", stratum="", parameters={}, counts={}, proposal={},
            specification=plain_specification(method={"name": "cp"}),
        )  # fmt: skip
        journal.append(Event.ATTEMPT, trial=name)
    calls = [
        lambda name=name, epoch=epoch: journal.append(
            Event.EPOCH, trial=name, epoch=epoch, metrics=metrics(100 / epoch, epoch)
        )
        for epoch in range(1, reports + 1)
        for name in names
    ]
    times = timed(calls)
    for name in names:
        journal.append(Event.FINISHED, sync=True, trial=name, status="completed", reason="")
    journal.append(Event.CLOSED, sync=True, reason="finished")
    journal.close()
    return times, tracking.finish(120)


def through_callback(uri: str, trials: int, reports: int) -> list[float]:
    os.environ.update(MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true", MLFLOW_DISABLE_TELEMETRY="true")
    os.environ.update(RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS="0", MLFLOW_LOGGING_LEVEL="ERROR")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name="bench")
    callback.setup()
    started = [StandInTrial(number) for number in range(trials)]
    for trial in started:
        callback.log_trial_start(trial)
    calls = [
        lambda trial=trial, epoch=epoch: callback.log_trial_result(
            epoch, trial, {**metrics(100 / epoch, epoch), "timesteps_total": None, "training_iteration": epoch}
        )
        for epoch in range(1, reports + 1)
        for trial in started
    ]
    times = timed(calls)
    for trial in started:
        callback.log_trial_end(trial)
    return times


@contextmanager
def store(folder: Path, server: bool) -> Iterator[str]:
    """A SQLite address, or that of a server before it.

    MLflow, which Ray's callback calls, sets the variable of its address for later processes; here it ends with the
    store.
    """
    with changed_environment({TRACKING_VARIABLE: os.environ.get(TRACKING_VARIABLE)}), _address(folder, server) as uri:
        yield uri


@contextmanager
def _address(folder: Path, server: bool) -> Iterator[str]:
    database = f"sqlite:///{folder / 'callback.db'}"
    if not server:
        yield database
        return
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", database]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **LIGHT}, start_new_session=True
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                check_tracking_uri(uri)
                break
            except ValueError:
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def main() -> None:
    """Measure both and print the table."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--reports", type=int, default=20)
    parser.add_argument("--server", action="store_true", help="write to an MLflow server instead of SQLite")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, store(Path(scratch), args.server) as uri:
        study = Path(scratch) / "study"
        journal, behind = through_journal(study, uri if args.server else None, args.trials, args.reports)
        callback = through_callback(uri, args.trials, args.reports)
    where = "server" if args.server else "SQLite"
    table = Table(title=f"driver's time for one report (ms), {args.trials} trials x {args.reports} reports")
    for heading in ("way", "median", "mean", "99 %", "worst"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, times in (("journal, tracker follows", journal), (f"Ray's MLflow callback, {where}", callback)):
        tail = sorted(times)[int(0.99 * (len(times) - 1))]
        values = (statistics.median(times), statistics.mean(times), tail, max(times))
        table.add_row(name, *(f"{value:.3f}" for value in values))
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "mlflow", "pyarrow"))
    console = Console(width=100)
    console.print(table)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    console.print(f"{datetime.date.today()}; MLflow after the end: {behind or 'has every record'}")


if __name__ == "__main__":
    main()
