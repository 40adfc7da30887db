"""The one look at the test split: the front's kept checkpoints, after the search is over."""

from __future__ import annotations

from pathlib import Path

import torch

from lowrank.checkpoints import load_tensors
from lowrank.data import ImageData
from lowrank.errors import InputError
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER, Role, Status, TrialRecord
from sweeps.repeats import front
from sweeps.search import Search
from sweeps.trainable import make_trainer


def front_trials(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Every seed of the points that no other beats in both parameters and validation error; references always."""
    finished = [trial for trial in trials if trial.status is Status.COMPLETED and trial.val_error is not None]
    references = [trial for trial in finished if trial.role is Role.REFERENCE]
    return [trial for seeds in front(finished) for trial in seeds] + references


def evaluate_front(search: Search, folder: Path, data: ImageData) -> None:
    """Evaluate the front on the test split and journal it; a trial is evaluated once in its life."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for trial in front_trials(list(search.record.trials.values())):
        if trial.test_error is None:
            error = _test_error(trial, folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE, data, device)
            if error is not None:
                search.write_test_error(trial.trial_id, error)


def _test_error(trial: TrialRecord, path: Path, data: ImageData, device: str) -> float | None:
    try:
        state, _ = load_tensors(path, device)
    except (InputError, FileNotFoundError) as error:
        print(f"no test error for {trial.trial_id}: its weights are not there ({error})")
        return None
    trainer = make_trainer(trial.specification, data, device)
    trainer.load_state(state)
    return trainer.evaluate("test")["error"]
