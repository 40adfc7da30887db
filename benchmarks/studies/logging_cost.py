"""What a report costs: nothing logged, the journal with its tracker, and Ray's own callback, to SQLite and to a server.

Twice in the same run: as wall time of a Ray Tune run whose trials only report, and as the driver's time in the call.
Runs without logging and with the journal take turns, so that what else the machine does meets both. The callback, at
tens of milliseconds a report, needs fewer trials to be told from noise; it has a run without logging of its own length.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measurement import Goal, Measurement, Options, Table
from benchmarks.studies import logging_driver_time

TRIALS, REPORTS = 100, 20
FEWER = 5  # the callback's runs, and the driver's calls alone, have so many times fewer trials
ROUNDS = 2  # of no logging and the journal
QUICK_TRIALS, QUICK_REPORTS = 2, 2
LIMIT = 2.0  # ms a report more than no logging at all
NOTHING, OURS, THEIRS = "no logging", "journal, tracker follows", "Ray's MLflow callback"
STORES = {"SQLite": False, "server": True}


def _row(way: str, times: list[float]) -> dict[str, Any]:
    """Median, mean, 99 % and worst of milliseconds."""
    tail = sorted(times)[int(0.99 * (len(times) - 1))]
    middle, mean = statistics.median(times), statistics.mean(times)
    return {"way": way, "median ms": middle, "mean ms": mean, "99 % ms": tail, "worst ms": max(times)}


def _calls(folder: Path, trials: int, reports: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The driver's time in the call itself, one row a way, and what MLflow lacks in the end."""
    rows, lacking = [], []
    for name, server in STORES.items():
        run_folder = folder / f"calls_{name}"
        run_folder.mkdir()
        with logging_driver_time.store(run_folder, server) as uri:
            times, behind = logging_driver_time.through_journal(
                run_folder / "study", uri if server else None, trials, reports
            )
            rows.append(_row(f"{OURS}, {name}", times))
            rows.append(_row(f"{THEIRS}, {name}", logging_driver_time.through_callback(uri, trials, reports)))
            lacking += [behind] if behind else []
    return rows, lacking


class _Runs:
    """Tune runs that only report, each in a folder of its own, and what MLflow lacks of them in the end."""

    def __init__(self, folder: Path, reports: int):
        self.folder, self.reports, self.taken = folder, reports, 0
        self.lacking: list[str] = []

    def _place(self) -> Path:
        self.taken += 1
        run_folder = self.folder / f"run_{self.taken}"
        run_folder.mkdir()
        return run_folder

    def nothing(self, trials: int) -> float:
        """Wall seconds without logging."""
        from benchmarks.studies import logging_wall_time  # Ray with it, which no other benchmark needs

        return logging_wall_time.wall_seconds(self._place(), trials, self.reports, None)

    def journal(self, trials: int, server: bool) -> float:
        """Wall seconds with the journal, whose tracker follows."""
        from benchmarks.studies import logging_wall_time

        run_folder = self._place()
        with logging_driver_time.store(run_folder, server) as uri:
            seconds, behind = logging_wall_time.with_journal(
                run_folder / "own", trials, self.reports, uri if server else None
            )
        self.lacking += [behind] if behind else []
        return seconds

    def callback(self, trials: int, server: bool) -> float:
        """Wall seconds with Ray's own callback."""
        from benchmarks.studies import logging_wall_time

        run_folder = self._place()
        with logging_driver_time.store(run_folder, server) as uri:
            return logging_wall_time.with_callback(run_folder / "theirs", trials, self.reports, uri)


def _rows(way: str, seconds: list[float], nothing: list[float], trials: int, reports: int) -> dict[str, Any]:
    """Mean seconds of a way's runs, and the milliseconds that a report costs more than with no logging."""
    more = [1000 * (value - statistics.mean(nothing)) / (trials * reports) for value in seconds]
    return {
        "way": way, "trials": trials, "run s": statistics.mean(seconds), "a report more ms": statistics.mean(more),
        "of each run": ", ".join(f"{value:.2f}" for value in more),
    }  # fmt: skip


def _walls(folder: Path, trials: int, reports: int) -> tuple[list[dict[str, Any]], list[str], float]:
    """One row a way, what MLflow lacks, and by how many ms a report the runs without logging differ.

    A first run, which pays for imports and the worker, is not counted.
    """
    from benchmarks.studies import logging_wall_time

    stop, runs, fewer = logging_wall_time.start_ray(), _Runs(folder, reports), max(1, trials // FEWER)
    nothing: list[float] = []
    journal: dict[str, list[float]] = {name: [] for name in STORES}
    try:
        runs.nothing(1)
        for _ in range(ROUNDS):
            nothing.append(runs.nothing(trials))
            for name, server in STORES.items():
                journal[name].append(runs.journal(trials, server))
        nothing.append(runs.nothing(trials))
        short = [runs.nothing(fewer)]
        callback = {name: [runs.callback(fewer, server)] for name, server in STORES.items()}
    finally:
        stop()
    rows = [_rows(NOTHING, nothing, nothing, trials, reports), _rows(NOTHING, short, short, fewer, reports)]
    rows += [_rows(f"{OURS}, {name}", journal[name], nothing, trials, reports) for name in STORES]
    rows += [_rows(f"{THEIRS}, {name}", callback[name], short, fewer, reports) for name in STORES]
    return rows, runs.lacking, 1000 * (max(nothing) - min(nothing)) / (trials * reports)


def run(options: Options) -> Measurement:
    """Both measurements; the goals are on the wall time of the Tune runs, against the mean of those without logging."""
    trials, reports = (QUICK_TRIALS, QUICK_REPORTS) if options.quick else (TRIALS, REPORTS)
    with tempfile.TemporaryDirectory(prefix="logging_") as scratch:
        rows, lacking, apart = _walls(Path(scratch), trials, reports)
        calls, lacking_calls = _calls(Path(scratch), max(1, trials // FEWER), reports)
    extra = {row["way"]: row["a report more ms"] for row in rows}
    goals = [
        Goal(what=f"a report more than no logging, {name}", limit=LIMIT, found=extra[f"{OURS}, {name}"], unit="ms")
        for name in STORES
    ]
    return Measurement(
        name="logging",
        settings={"seed": options.seed, "trials": trials, "reports a trial": reports, "rounds": ROUNDS},
        tables=[
            Table(
                title="Wall time of a Ray Tune run",
                columns=("way", "trials", "run s", "a report more ms", "of each run"), rows=rows,
            ),
            Table(
                title="The driver's time for one report",
                columns=("way", "median ms", "mean ms", "99 % ms", "worst ms"), rows=calls,
            ),
        ],
        goals=goals,
        notes=[
            f"The runs without logging differ by {apart:.2f} ms a report: where that is more than a goal's "
            f"{LIMIT:g} ms, the machine was too busy to judge it.",
            f"MLflow after the end: {'; '.join(lacking + lacking_calls) or 'has every record'}",
        ],
    )  # fmt: skip
