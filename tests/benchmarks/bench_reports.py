"""What a report costs the driver, from `bench_logging`, as a record like the others."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import bench_logging
from tests.benchmarks.bench_record import Measurement, Options, Table

TRIALS, REPORTS = 20, 20
QUICK_TRIALS, QUICK_REPORTS = 2, 2


def _row(way: str, times: list[float]) -> dict[str, Any]:
    """Median, mean, 99 % and worst of milliseconds."""
    tail = sorted(times)[int(0.99 * (len(times) - 1))]
    middle, mean = statistics.median(times), statistics.mean(times)
    return {"way": way, "median ms": middle, "mean ms": mean, "99 % ms": tail, "worst ms": max(times)}


def run(options: Options) -> Measurement:
    """The journal, which the tracker carries into MLflow, against Ray's own callback; both write to SQLite."""
    trials, reports = (QUICK_TRIALS, QUICK_REPORTS) if options.quick else (TRIALS, REPORTS)
    with tempfile.TemporaryDirectory(prefix="logging_") as scratch, bench_logging.store(Path(scratch), False) as uri:
        journal, behind = bench_logging.through_journal(Path(scratch) / "study", None, trials, reports)
        callback = bench_logging.through_callback(uri, trials, reports)
    return Measurement(
        name="logging",
        settings={"seed": options.seed, "trials": trials, "reports a trial": reports},
        tables=[
            Table(
                title="The driver's time for one report",
                columns=("way", "median ms", "mean ms", "99 % ms", "worst ms"),
                rows=[
                    _row("journal, tracker follows", journal), _row("Ray's MLflow callback, SQLite", callback),
                ],
            )
        ],
        notes=[f"MLflow after the end: {behind or 'has every record'}"],
    )  # fmt: skip
