"""The end of a search: the front is evaluated on the test split, and its weights are kept as usable models."""

from __future__ import annotations

from pathlib import Path

import torch

from lowrank.compression import plan_sized_network
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io import load_tensors
from lowrank.networks import NetworkSettings
from lowrank.serving import MODEL_FILE, save_classifier
from lowrank.training import Trainer
from sweeps.records import CHECKPOINT_FILE, MODELS_FOLDER, TRIALS_FOLDER, TrialRecord, front_first_seeds, front_trials
from sweeps.search import Search
from sweeps.trials import make_trainer, without_teacher


def evaluate_front(search: Search, folder: Path, data: ImageData) -> None:
    """Evaluate the front on the test split and keep one model for each of its points.

    A trial is evaluated once in its life.

    Args:
        search: the finished search; test errors are journaled through it.
        folder: the study's.
        data: the study's images.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    front_ids = {trial.trial_id for trial in front_first_seeds(search.record.trials.values())}
    for trial in front_trials(search.record.trials.values()):
        model_folder = folder / MODELS_FOLDER / trial.trial_id
        needs_model = trial.trial_id in front_ids and not (model_folder / MODEL_FILE).exists()
        if trial.test_error is None and (sibling_error := search.siblings.test_error(trial)) is not None:
            search.write_test_error(trial.trial_id, sibling_error)
        if trial.test_error is not None and not needs_model:
            continue
        weights = folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE
        trainer = restore_trainer(trial, weights, data, device)
        if trainer is None:
            continue
        if trial.test_error is None:
            search.write_test_error(trial.trial_id, trainer.evaluate("test")["error"])
        if needs_model:
            write_model(model_folder, trial, trainer, data)


def restore_trainer(trial: TrialRecord, path: Path, data: ImageData, device: str) -> Trainer | None:
    """Make a trainer with a trial's last weights.

    Args:
        trial: a trial that has ended.
        path: the file of its weights.
        data: its images.
        device: cpu or cuda.

    Returns:
        The trainer; None, with a printed line, where the weights are gone.
    """
    try:
        state, _ = load_tensors(path, device)
    except (InputError, FileNotFoundError) as error:
        print(f"no test error for {trial.trial_id}: its weights are not there ({error})")
        return None
    trainer = make_trainer(without_teacher(trial.specification), data, device)
    trainer.load_state(state)
    return trainer


def write_model(folder: Path, trial: TrialRecord, trainer: Trainer, data: ImageData) -> None:
    """Write a trial's network as a model that can be used on its own.

    MLflow's registry is filled from there.

    Args:
        folder: the model's, to be made.
        trial: the trial.
        trainer: holds its weights.
        data: its images.
    """
    specification, settings = trial.specification, NetworkSettings(**trial.specification["network"])
    _, sized = plan_sized_network(
        settings, specification["method"], data.image_shape, len(data.classes),
        allocation=specification.get("allocation"),
    )  # fmt: skip
    try:
        save_classifier(folder, trainer.network, data, settings=settings, method=sized)
    except InputError as error:
        print(f"no model of {trial.trial_id} for the registry: {error}")
