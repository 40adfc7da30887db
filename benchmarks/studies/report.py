"""What the report of a large study takes: time and memory of the real command, from the journal and from the tables."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.measurement import PROJECT, Goal, Measurement, Options, Table
from sweeps.records.load import load_study
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, RESULTS_FILE
from sweeps.records.tables import epochs_to_table, results_to_table
from tests.support.synthetic_study import Plan, write_study

TRIALS, EPOCHS = 2_000, 100
QUICK_TRIALS, QUICK_EPOCHS = 40, 5
SECONDS, MEGABYTES = 15.0, 1000.0
REPEATS = 3
SAMPLE_SECONDS = 0.2


def make_study(folder: Path, trials: int, epochs: int, seed: int = 0) -> Path:
    """A made-up study with journal and tables; sizes, errors and endings are plausible."""
    write_study(folder, Plan(name="large", trials=trials, epochs=epochs, seed=seed, images=5000))
    study = load_study(folder)
    pq.write_table(results_to_table(study), folder / RESULTS_FILE)
    pq.write_table(epochs_to_table(study), folder / EPOCHS_FILE)
    return folder


def one_report(study: Path, out: Path) -> tuple[float, float]:
    """Seconds and the most resident memory (MB, 1e6 bytes) of one run of the command, in processes of its own.

    Memory is that of all its processes together, five times a second; a page that several share counts once.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    command = [sys.executable, str(PROJECT / "analysis" / "report.py"), "--study", str(study), "--out", str(out)]
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, peak / 1e6


def resident(session: int) -> int:
    """Bytes in memory of all processes of a session, by Linux's /proc: their proportional set sizes."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:  # proc(5); a name may hold blanks
                rollup = stat.with_name("smaps_rollup").read_text()
                total += 1024 * int(rollup.partition("\nPss:")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue  # it has ended meanwhile
    return total


def _row(source: str, study: Path, folder: Path, repeats: int) -> dict[str, Any]:
    out = folder / f"report_{source}"
    runs = [one_report(study, out) for _ in range(repeats)]
    return {
        "from": source, "s": statistics.median(seconds for seconds, _ in runs),
        "slowest s": max(seconds for seconds, _ in runs), "MB": max(memory for _, memory in runs),
        "page MB": (out / "report.html").stat().st_size / 1e6,
    }  # fmt: skip


def run(options: Options) -> Measurement:
    """Measure both sources."""
    trials, epochs = (QUICK_TRIALS, QUICK_EPOCHS) if options.quick else (TRIALS, EPOCHS)
    repeats = options.repeated(REPEATS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        study = make_study(folder / "study", trials, epochs, options.seed)
        rows = [_row("journal", study, folder, repeats)]
        (study / JOURNAL_FILE).unlink()
        rows.append(_row("tables", study, folder, repeats))
    table = Table(
        title=f"a report of {trials:,} trials of {epochs} epochs", rows=rows,
        columns=("from", "s", "slowest s", "MB", "page MB"),
    )  # fmt: skip
    return Measurement(
        name="report", settings={"trials": trials, "epochs": epochs, "repeats": repeats, "seed": options.seed},
        tables=[table],
        goals=[
            Goal(what="a report, slower source", limit=SECONDS, found=max(row["s"] for row in rows), unit="s"),
            Goal(what="its memory", limit=MEGABYTES, found=max(row["MB"] for row in rows), unit="MB"),
        ],
        notes=["the start of Python and all imports are included"],
    )  # fmt: skip
