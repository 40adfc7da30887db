"""The one look at the test split: the front's kept checkpoints, after the search is over."""

from __future__ import annotations

from pathlib import Path

import torch

from lowrank.checkpoints import load_tensors
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.pareto import non_dominated
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER, Role, Status, TrialRecord
from sweeps.search import Search
from sweeps.teaching import without_teacher
from sweeps.trainable import make_trainer


def front_trials(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Finished trials that no other beats in both parameters and validation error; references always."""
    finished = [trial for trial in trials if trial.status is Status.COMPLETED and trial.val_error is not None]
    searched = [trial for trial in finished if trial.role is Role.SEARCH]
    points = [(float(trial.counts["params"]), float(trial.val_error or 0.0)) for trial in searched]
    references = [trial for trial in finished if trial.role is Role.REFERENCE]
    return [searched[index] for index in non_dominated(points)] + references


def evaluate_front(search: Search, folder: Path, data: ImageData) -> None:
    """Evaluate the front on the test split and journal it; a trial is evaluated once in its life."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for trial in front_trials(list(search.record.trials.values())):
        if trial.test_error is None:
            error = error_on_test(trial, folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE, data, device)
            if error is not None:
                search.write_test_error(trial.trial_id, error)


def error_on_test(trial: TrialRecord, path: Path, data: ImageData, device: str) -> float | None:
    """The test error (percent) of a finished trial's weights at `path`; None, with a line, where they are not there."""
    try:
        state, _ = load_tensors(path, device)
    except (InputError, FileNotFoundError) as error:
        print(f"no test error for {trial.trial_id}: its weights are not there ({error})")
        return None
    trainer = make_trainer(without_teacher(trial.specification), data, device)
    trainer.load_state(state)
    return trainer.evaluate("test")["error"]
