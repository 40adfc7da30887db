"""What the research log of a large study takes: time of the real command, with and without a record of wrong images."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measurement import PROJECT, Goal, Measurement, Options, Table
from tests.support.synthetic_study import Plan, write_study

TRIALS, EPOCHS = 1_000, 20
QUICK_TRIALS, QUICK_EPOCHS = 40, 3
SECONDS = 10.0
REPEATS = 3
IMAGES = (
    (360, False),
    (360, True),
    (10_000, True),
)  # validation images, and whether each network's wrong ones are kept


def one_log(study: Path, out: Path) -> tuple[float, float]:
    """Wall and processor seconds of one run of the command, start of Python and pictures included.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    command = [sys.executable, "-m", "analysis", "log", str(study), "--out", str(out)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, used


def _row(folder: Path, options: Options, images: int, wrong_images: bool) -> dict[str, Any]:
    trials, epochs = (QUICK_TRIALS, QUICK_EPOCHS) if options.quick else (TRIALS, EPOCHS)
    plan = Plan(
        name="large", trials=trials, epochs=epochs, seed=options.seed, images=images, wrong_images=wrong_images
    )  # fmt: skip
    study = write_study(folder / f"study_{images}_{wrong_images}", plan)
    runs = []
    for number in range(options.repeated(REPEATS)):
        out = folder / f"run{number}_{images}_{wrong_images}"
        out.mkdir()
        runs.append(one_log(study, out / "LOG.md"))
    return {
        "images": images, "wrong images": "kept" if wrong_images else "not kept",
        "s": statistics.median(seconds for seconds, _ in runs), "slowest s": max(seconds for seconds, _ in runs),
        "processor s": statistics.median(used for _, used in runs),
    }  # fmt: skip


def run(options: Options) -> Measurement:
    """Measure the command on made-up studies."""
    trials, epochs = (QUICK_TRIALS, QUICK_EPOCHS) if options.quick else (TRIALS, EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        rows = [_row(Path(folder), options, images, kept) for images, kept in IMAGES]
    table = Table(
        title=f"a log of {trials:,} trials of {epochs} epochs", rows=rows,
        columns=("images", "wrong images", "s", "slowest s", "processor s"),
    )  # fmt: skip
    settings = {"trials": trials, "epochs": epochs, "repeats": options.repeated(REPEATS), "seed": options.seed}
    slowest = max(row["s"] for row in rows)
    return Measurement(
        name="log", settings=settings, tables=[table],
        goals=[Goal(what="a log, slowest", limit=SECONDS, found=slowest, unit="s")],
        notes=["the start of Python, all imports and the pictures are included"],
    )  # fmt: skip
