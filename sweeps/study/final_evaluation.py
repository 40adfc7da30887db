"""The end of a search: one look at the test split, and the front's weights kept as models that can be used."""

from __future__ import annotations

from pathlib import Path

import torch

from lowrank.compression.trace import network_plan
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io.tensor_file import load_tensors
from lowrank.networks.registry import NetworkSettings
from lowrank.serving import MODEL_FILE, save_classifier
from lowrank.training.trainer import Trainer
from sweeps.records.fronts import front_first_seeds, front_trials
from sweeps.records.model import TrialRecord
from sweeps.records.names import CHECKPOINT_FILE, MODELS_FOLDER, TRIALS_FOLDER
from sweeps.search.search import Search
from sweeps.trials.build import make_trainer
from sweeps.trials.teacher import without_teacher


def evaluate_front(search: Search, folder: Path, data: ImageData) -> None:
    """Evaluate the front on the test split and journal it, once in a trial's life; keep one model a point."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {trial.trial_id for trial in front_first_seeds(search.record.trials.values())}
    for trial in front_trials(search.record.trials.values()):
        kept = folder / MODELS_FOLDER / trial.trial_id
        keep = trial.trial_id in models and not (kept / MODEL_FILE).exists()
        if trial.test_error is None and (seen := search.siblings.test_error(trial)) is not None:
            search.write_test_error(trial.trial_id, seen)
        if trial.test_error is not None and not keep:
            continue
        trainer = _restored(trial, folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE, data, device)
        if trainer is None:
            continue
        if trial.test_error is None:
            search.write_test_error(trial.trial_id, trainer.evaluate("test")["error"])
        if keep:
            keep_model(kept, trial, trainer, data)


def error_on_test(trial: TrialRecord, path: Path, data: ImageData, device: str) -> float | None:
    """The test error (percent) of a finished trial's weights at `path`; None, with a line, where they are not there."""
    trainer = _restored(trial, path, data, device)
    return None if trainer is None else trainer.evaluate("test")["error"]


def _restored(trial: TrialRecord, path: Path, data: ImageData, device: str) -> Trainer | None:
    """The trainer with the trial's last weights; None, with a line that says so, where they are not there."""
    try:
        state, _ = load_tensors(path, device)
    except (InputError, FileNotFoundError) as error:
        print(f"no test error for {trial.trial_id}: its weights are not there ({error})")
        return None
    trainer = make_trainer(without_teacher(trial.specification), data, device)
    trainer.load_state(state)
    return trainer


def keep_model(folder: Path, trial: TrialRecord, trainer: Trainer, data: ImageData) -> None:
    """Write the trial's network with all that it takes to use it; MLflow's registry is filled from there."""
    specification, settings = trial.specification, NetworkSettings(**trial.specification["network"])
    plan = network_plan(settings, data.image_shape, len(data.classes))
    sized = plan.sized(specification["method"], specification.get("allocation"))
    try:
        save_classifier(folder, trainer.network, data, settings=settings, method=sized)
    except InputError as error:
        print(f"no model of {trial.trial_id} for the registry: {error}")
