"""What a study's records say after a fault: what is lost, doubled or repeated, and whether the numbers are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from sweeps.records.events import Event, Status
from sweeps.records.load import fold_journal
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, MACHINE_METRICS, RESULTS_FILE
from sweeps.trials.build import load_trial_data, make_trainer
from tests.support.journals import read_events
from tests.support.mlflow_store import epoch_metrics, journal_metrics, trial_runs

ALLOWED_SECONDS = 60.0  # of training that one fault may cost, or one epoch where that is longer
Curve = dict[int, dict[str, float]]


def read(folder: Path) -> StudyRecord:
    return fold_journal(folder / JOURNAL_FILE)


def lost(folder: Path, database: Path, trials: int) -> list[str]:
    """What should be in journal, tables and MLflow and is not, one line each."""
    found = read(folder).trials
    missing = [] if len(found) == trials else [f"{len(found)} trials, not {trials}"]
    good = (Status.COMPLETED, Status.STOPPED)
    missing += [
        f"{name} is {trial.status}: {trial.reason}" for name, trial in found.items() if trial.status not in good
    ]
    rows = pq.read_table(folder / RESULTS_FILE)["trial_id"].to_pylist()
    missing += [f"{name} has no row" for name in found.keys() - set(rows)]
    epochs = {(row["trial_id"], row["epoch"]) for row in pq.read_table(folder / EPOCHS_FILE).to_pylist()}
    told = {(name, epoch) for name, trial in found.items() for epoch in range(1, trial.last_epoch + 1)}
    missing += [f"epoch {epoch} of {name} has no row" for name, epoch in told - epochs]
    missing += [f"{name} has no run" for name in found.keys() - trial_runs(database).keys()]
    missing += [f"MLflow lacks {key}" for key in journal_metrics(folder).keys() - epoch_metrics(database).keys()]
    return missing


def doubled(folder: Path, database: Path) -> list[str]:
    """What journal, tables or MLflow hold more than once, one line each."""
    events = list(read_events(folder / JOURNAL_FILE))
    counts: dict[str, Counter[Any]] = {
        "end in the journal": Counter(each["trial"] for each in events if each["event"] == Event.FINISHED),
        "epoch in the journal": Counter(
            (each["trial"], each["epoch"]) for each in events if each["event"] == Event.EPOCH
        ),
        "row": Counter(pq.read_table(folder / RESULTS_FILE)["trial_id"].to_pylist()),
        "row of an epoch": Counter(
            (row["trial_id"], row["epoch"]) for row in pq.read_table(folder / EPOCHS_FILE).to_pylist()
        ),
        "run": Counter({name: len(runs) for name, runs in trial_runs(database).items()}),
        "metric in MLflow": epoch_metrics(database),
    }
    return [f"{times} times {what}: {key}" for what, each in counts.items() for key, times in each.items() if times > 1]


def repeated(folder: Path) -> list[tuple[int, float]]:
    """For each further attempt at a trial: epochs that it trained once more, and how many seconds they had taken."""
    seconds: dict[str, Curve] = {}
    begun, found = set(), []
    for event in read_events(folder / JOURNAL_FILE):
        trial = event.get("trial", "")
        if event["event"] == Event.EPOCH:
            seconds.setdefault(trial, {})[event["epoch"]] = event["metrics"]
        elif event["event"] == Event.ATTEMPT:
            again = [
                each["epoch_seconds"] for epoch, each in seconds.get(trial, {}).items() if epoch > event["from_epoch"]
            ]
            if trial in begun:
                found.append((len(again), sum(again)))
            begun.add(trial)
    return found


def too_much(attempts: list[tuple[int, float]]) -> list[str]:
    """The attempts that repeated more than they may, one line each."""
    over = [each for each in attempts if each[0] > 1 and each[1] > ALLOWED_SECONDS]
    return [f"{epochs} epochs repeated, {seconds:.0f} s" for epochs, seconds in over]


def answer(folder: Path) -> dict[str, Any]:
    """Everything that a study says and that is no matter of the machine, to the last bit."""
    return {
        name: (str(trial.status), trial.reason, curve(trial), trial.test_error)
        for name, trial in read(folder).trials.items()
    }


def curve(trial: TrialRecord) -> Curve:
    """The metrics of a trial's epochs, less those of the machine."""
    return {epoch: _outcome(metrics) for epoch, metrics in sorted(trial.epochs.items())}


def _outcome(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in MACHINE_METRICS and name != "time"}


def alone(trial: TrialRecord) -> Curve:
    """The same curve from a training in this process, with no study around it; of a trial without a teacher."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = make_trainer(trial.specification, load_trial_data(trial.specification, None), "cpu")
        return {epoch: _outcome(trainer.train_epoch()) for epoch in range(1, trial.last_epoch + 1)}
    finally:
        torch.set_num_threads(before)


def unlike_alone(folder: Path) -> list[str]:
    """The trials that, run again alone, give other numbers than are recorded."""
    trials = read(folder).trials
    return [f"{name} is another when run alone" for name, trial in trials.items() if alone(trial) != curve(trial)]
