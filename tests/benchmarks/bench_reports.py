"""What a report costs: nothing logged, the journal with its tracker, and Ray's own callback, to SQLite and to a server.

Twice in the same run: as wall time of a Ray Tune run whose trials only report, and as the driver's time in the call.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import bench_logging
from tests.benchmarks.bench_record import Goal, Measurement, Options, Table

TRIALS, REPORTS = 100, 20
CALLED = 5  # the driver's calls alone are timed with so many times fewer trials: a call is a call
QUICK_TRIALS, QUICK_REPORTS = 2, 2
LIMIT = 2.0  # ms a report more than no logging at all
NOTHING = "no logging"
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
        place = folder / f"calls_{name}"
        place.mkdir()
        with bench_logging.store(place, server) as uri:
            times, behind = bench_logging.through_journal(place / "study", uri if server else None, trials, reports)
            rows.append(_row(f"journal, tracker follows, {name}", times))
            rows.append(_row(f"Ray's MLflow callback, {name}", bench_logging.through_callback(uri, trials, reports)))
            lacking += [behind] if behind else []
    return rows, lacking


def _runs(folder: Path, trials: int, reports: int) -> tuple[dict[str, float], list[str]]:
    """Wall seconds of one Tune run by way; a first run, which pays for imports and the worker, is not counted."""
    found: dict[str, float] = {}
    lacking: list[str] = []
    from tests.benchmarks import bench_tune  # Ray with it, which no other benchmark needs

    stop = bench_tune.start_ray()
    try:
        bench_tune.wall_seconds(folder / "first", 1, 1, None)
        found[NOTHING] = bench_tune.wall_seconds(folder / "nothing", trials, reports, None)
        for name, server in STORES.items():
            place = folder / f"runs_{name}"
            place.mkdir()
            with bench_logging.store(place, server) as uri:
                own = place / "own"
                seconds, behind = bench_tune.with_journal(own, trials, reports, uri if server else None)
                found[f"journal, tracker follows, {name}"] = seconds
                lacking += [behind] if behind else []
                callback = bench_tune.with_callback(place / "theirs", trials, reports, uri)
                found[f"Ray's MLflow callback, {name}"] = callback
        found[f"{NOTHING}, again"] = bench_tune.wall_seconds(folder / "again", trials, reports, None)
    finally:
        stop()
    return found, lacking


def run(options: Options) -> Measurement:
    """Both measurements; the goals are on the wall time of the Tune runs, against the mean of two without logging."""
    trials, reports = (QUICK_TRIALS, QUICK_REPORTS) if options.quick else (TRIALS, REPORTS)
    with tempfile.TemporaryDirectory(prefix="logging_") as scratch:
        seconds, lacking = _runs(Path(scratch), trials, reports)
        calls, lacking_calls = _calls(Path(scratch), max(1, trials // CALLED), reports)
    nothing = statistics.mean(value for way, value in seconds.items() if way.startswith(NOTHING))
    extra = {way: 1000 * (value - nothing) / (trials * reports) for way, value in seconds.items()}
    goals = [
        Goal(
            what=f"a report more than no logging, {name}",
            limit=LIMIT,
            found=extra[f"journal, tracker follows, {name}"],
            unit="ms",
        )
        for name in STORES
    ]
    rows = [{"way": way, "run s": value, "a report more ms": extra[way]} for way, value in seconds.items()]
    return Measurement(
        name="logging",
        settings={"seed": options.seed, "trials": trials, "reports a trial": reports},
        tables=[
            Table(title="Wall time of a Ray Tune run", columns=("way", "run s", "a report more ms"), rows=rows),
            Table(
                title="The driver's time for one report",
                columns=("way", "median ms", "mean ms", "99 % ms", "worst ms"), rows=calls,
            ),
        ],
        goals=goals,
        notes=[f"MLflow after the end: {'; '.join(lacking + lacking_calls) or 'has every record'}"],
    )  # fmt: skip
