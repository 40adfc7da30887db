"""How long a sweep is not training: start-up, and the time from one trial's end to the next one's first epoch.

A real study of tiny trials is run as a user would, `python sweeps/run.py`, and everything is read off its journal.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measurement import PROJECT, Goal, Measurement, Options, Table, median
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import JOURNAL_FILE

GOAL_SECONDS = 0.5
TRIALS, QUICK_TRIALS = 16, 4
IMAGES = 128
LIMIT_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What lies between the end of a trial and the first epoch of the next one in the same process, in seconds.

    `setting_up` is what the worker itself reports as its start; `ahead` is how long the next trial had been proposed.
    """

    worker: int
    seconds: float
    setting_up: float
    ahead: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One study: what its process did, and its journal."""

    started: float  # seconds since the epoch
    ended: float
    slots: int
    record: StudyRecord
    said: str


def study_command(options: Options, out: Path) -> list[str]:
    """The command of a study of tiny trials in `out`."""
    overrides = (
        "network.width=0.25", "train.epochs=1", f"data.train_images={IMAGES}", "search.stop=none", "references=[]",
        "budget.params={log_uniform: [0.3, 0.9]}",
    )  # fmt: skip
    return [
        sys.executable, "sweeps/run.py", "--space", "tt_dims", "--out", str(out), "--name", "turnaround",
        "--seed", str(options.seed), "--trials", str(QUICK_TRIALS if options.quick else TRIALS),
        *(part for override in overrides for part in ("--set", override)),
        *(("--gpus-per-trial", "0.25") if options.device == "cuda" else ()),
    ]  # fmt: skip


def run_study(options: Options, out: Path) -> Run:
    """Run the study and read its journal; raises RuntimeError with what it printed last when it fails."""
    hidden = {} if options.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    started = time.time()
    done = subprocess.run(
        study_command(options, out), cwd=PROJECT, env={**os.environ, **hidden}, capture_output=True, text=True,
        timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    ended = time.time()
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise RuntimeError(f"the study ended with code {done.returncode}: {said}")
    slots = re.search(r"(\d+) at a time", done.stdout)
    record = fold_journal(out / "turnaround" / JOURNAL_FILE)
    return Run(started=started, ended=ended, slots=int(slots[1]) if slots else 0, record=record, said=done.stdout)


def first_epoch(trial: TrialRecord) -> dict[str, float]:
    """Metrics of the first epoch, with the `time` at which they were journalled."""
    return trial.epochs[min(trial.epochs)]


def began(trial: TrialRecord) -> float:
    """When the first epoch began: when its result came, less what it took."""
    return first_epoch(trial)["time"] - first_epoch(trial)["epoch_seconds"]


def by_worker(record: StudyRecord) -> dict[int, list[TrialRecord]]:
    """The trials that ran undisturbed, in order, under the process that ran them."""
    found: dict[int, list[TrialRecord]] = defaultdict(list)
    for trial in sorted((each for each in record.trials.values() if each.epochs), key=began):
        if len(trial.attempts) == 1 and trial.finished_at is not None:
            found[int(trial.attempts[0]["pid"])].append(trial)
    return dict(found)


def turns(record: StudyRecord) -> list[Turn]:
    """Every change of trial within a process; the first wave has none."""
    return [
        Turn(
            worker=worker, seconds=began(after) - (before.finished_at or 0.0),
            setting_up=float(after.attempts[0]["start_seconds"]),
            ahead=(before.finished_at or 0.0) - (after.proposed_at or 0.0),
        )
        for worker, trials in by_worker(record).items()
        for before, after in pairwise(trials)
    ]  # fmt: skip


def trials_a_minute(record: StudyRecord) -> float | None:
    """The pace from the first end of a trial to the last; None with fewer than two."""
    ends = sorted(trial.finished_at for trial in record.trials.values() if trial.finished_at and trial.epochs)
    return 60 * (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else None


def _row(part: str, values: list[float]) -> dict[str, Any]:
    return {"part": part, "median s": median(values), "max s": max(values), "count": len(values)}


def _rows(run: Run, changes: list[Turn]) -> list[dict[str, Any]]:
    done = [trial for trial in run.record.trials.values() if trial.epochs]
    results = sorted(first_epoch(trial)["time"] for trial in done)
    ends = [trial.finished_at for trial in done if trial.finished_at]
    first_starts = [float(trials[0].attempts[0]["start_seconds"]) for trials in by_worker(run.record).values()]
    return [
        _row("command to study (imports, data, Ray)", [run.record.header.began - run.started]),
        _row("study to first result (worker, first trial)", [results[0] - run.record.header.began]),
        _row("command to first result", [results[0] - run.started]),
        _row("first set-up in a worker (data, network)", first_starts),
        _row("trial's end to next first epoch", [turn.seconds for turn in changes]),
        _row("  set-up in the worker", [turn.setting_up for turn in changes]),
        _row("  all else (Ray, driver, checkpoint, clean-up)", [turn.seconds - turn.setting_up for turn in changes]),
        _row("next trial proposed ahead of that end", [turn.ahead for turn in changes]),
        _row("an epoch with its evaluation", [first_epoch(trial)["epoch_seconds"] for trial in done]),
        _row("last trial's end to exit (test, MLflow, summary)", [run.ended - max(ends)]),
        _row("whole command", [run.ended - run.started]),
    ]


def summarise(run: Run, options: Options) -> Measurement:
    """What the journal tells; raises RuntimeError when no worker ran two trials."""
    changes = turns(run.record)
    if not changes:
        raise RuntimeError(f"no worker ran two trials one after the other: {run.said.strip()[-300:]}")
    seconds = [turn.seconds for turn in changes]
    workers = {worker: len(trials) for worker, trials in by_worker(run.record).items()}
    pace = trials_a_minute(run.record)
    notes = [f"{pace:.1f} trials a minute from the first end to the last"] if pace else []
    shares = " + ".join(map(str, workers.values()))
    notes.append(f"{len(workers)} workers for {run.slots} slots ran {shares} trials")
    return Measurement(
        name="turnaround",
        settings={"seed": options.seed, "device": options.device, "trials": sum(workers.values()), "slots": run.slots},
        tables=[
            Table(
                title="Turnaround of tiny trials (digits, ResNet-9 at width 0.25, 1 epoch)",
                columns=("part", "median s", "max s", "count"), rows=_rows(run, changes),
            )
        ],
        goals=[
            Goal(what="trial's end to next first epoch, median", limit=GOAL_SECONDS, found=median(seconds), unit="s"),
            Goal(what="trial's end to next first epoch, longest", limit=GOAL_SECONDS, found=max(seconds), unit="s"),
        ],
        notes=notes,
    )  # fmt: skip


def run(options: Options) -> Measurement:
    """Run the study in a temporary folder and summarise it."""
    with tempfile.TemporaryDirectory(prefix="turnaround_") as folder:
        return summarise(run_study(options, Path(folder)), options)
