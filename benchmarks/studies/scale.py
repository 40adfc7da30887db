"""Whether a driver's cost per trial stays the same from the first trials to the thousandth, on pretended GPUs.

    python -m benchmarks scale

The real command with its sampler, journal, tables and MLflow, on a Ray that was told of 64 GPUs; only the training is
replaced: each trial replays a recorded learning curve, in a process that never imports torch.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measurement import PROJECT, Goal, Measurement, Options, Table
from benchmarks.studies.replayed_trial import PACE

TRIALS, GPUS = 1000, 64
EPOCH_SECONDS = "0.2"
GROWTH = 1.25  # how much more the last trials may cost than those after the first hundred
COLUMNS = (
    "trials", "driver ms a trial", "driver MB", "KB a trial", "wall s a trial", "events a trial", "journal KB a trial",
    "proposal ms", "tracker ms a trial", "tracker MB", "tracker behind KB",
)  # fmt: skip


def study(folder: Path, trials: int, gpus: int) -> dict[str, Any]:
    """Run a study of replayed trials in a process of its own; what its driver noted (see scale_driver)."""
    result = folder / "result.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.studies.scale_driver",
        str(folder),
        str(trials),
        str(gpus),
        str(result),
    ]
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, PACE: EPOCH_SECONDS}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray would hold the pretended GPUs against it
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the study ended with {done.returncode}: {done.stderr[-2000:]}")
    outcome = json.loads(result.read_text())
    if outcome["code"]:
        printed = (folder / "said.txt").read_text() + done.stderr
        raise RuntimeError(f"the command ended with {outcome['code']}: {printed[-2000:]}")
    return outcome


def windows(notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a trial cost between each note and the one before it."""
    rows = []
    for before, after in itertools.pairwise(notes):
        trials = after["trials"] - before["trials"]

        def each(name: str, scale: float, before: Any = before, after: Any = after, over: float = trials) -> float:
            return scale * (after[name] - before[name]) / over

        proposals = max(1, after["proposals"] - before["proposals"])
        rows.append({
            "trials": f"{before['trials']} to {after['trials']}", "driver ms a trial": each("cpu", 1e3),
            "driver MB": after["rss"] / 1e6, "KB a trial": each("rss", 1e-3), "wall s a trial": each("wall", 1),
            "events a trial": each("events", 1), "journal KB a trial": each("journal_bytes", 1e-3),
            "proposal ms": each("proposal_seconds", 1e3, over=proposals),
            "tracker ms a trial": each("tracker_cpu", 1e3), "tracker MB": after["tracker_rss"] / 1e6,
            "tracker behind KB": (after["journal_bytes"] - after["carried_bytes"]) / 1e3,
        })  # fmt: skip
    return rows


def run(options: Options) -> Measurement:
    """Replay 1,000 trials on 64 simulated GPUs (40 on 8 when quick)."""
    trials, gpus = (40, 8) if options.quick else (TRIALS, GPUS)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        outcome = study(Path(folder), trials, gpus)
    rows = windows(outcome["rows"])
    duration = f"whole study {outcome['seconds']:.0f} s, of which {outcome['end_seconds']:.0f} s after the last trial"
    table = Table(title="what a trial costs, by how many there have been", columns=COLUMNS, rows=rows)
    settings = {"trials": trials, "pretended GPUs": gpus, "seconds an epoch": EPOCH_SECONDS, "epochs": 30}
    return Measurement(
        name="scale", settings=settings, tables=[table], goals=[] if options.quick else _goals(rows),
        notes=[f"{outcome['workers']} worker processes, the largest of {outcome['worker_mb']:.0f} MB; {duration}"],
    )  # fmt: skip


def _goals(rows: list[dict[str, Any]]) -> list[Goal]:
    """The last window beside the second: in the first the driver still fills its caches."""
    second, last = rows[1], rows[-1]
    between = f"{last['trials']} over {second['trials']}"
    return [
        Goal(what=f"{what}, {between}", limit=GROWTH, found=last[what] / second[what], unit="")
        for what in ("driver ms a trial", "KB a trial", "tracker ms a trial")
    ]
