"""What follows a search: the front and the references are evaluated on the test split and written as models."""

from __future__ import annotations

from pathlib import Path

import torch

from lowrank.data import ImageData
from lowrank.errors import HungError, InputError
from lowrank.io import load_tensors
from lowrank.serving import MODEL_FILE, save_classifier
from lowrank.training import Trainer
from lowrank.utils import first_line, format_counted, one_line
from sweeps.cluster import out_of_memory
from sweeps.records import (
    CHECKPOINT_FILE,
    MODELS_FOLDER,
    TRIALS_FOLDER,
    StudyRecord,
    TrialRecord,
    encode_wrong_images,
    front_trials,
    model_trials,
    resume_command,
)
from sweeps.search import Search
from sweeps.trials import make_trainer, without_teacher


def evaluate_front(search: Search, folder: Path, data: ImageData, *, look: bool = True) -> list[str]:
    """Evaluate the front and the references on the test split, and write a model of each.

    A trial that has a test error already is not evaluated again. A trial whose weights cannot be used, or for which
    there is not enough memory, is skipped; a line and a notice of the trial say why. Once images cannot be read, no
    further trial is evaluated.

    Args:
        search: the finished search; test errors are written to its journal.
        folder: the study's folder.
        data: the study's images.
        look: whether to look at the test split; models are written without it too.

    Returns:
        A line on trials without a test error and the command for a further look; none where all have one.
    """
    images_hang = lacks_memory = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model_ids = {trial.trial_id for trial in model_trials(search.record.trials.values())}
    for trial in front_trials(search.record.trials.values()):
        model_folder = folder / MODELS_FOLDER / trial.trial_id
        needs_model = trial.trial_id in model_ids and not (model_folder / MODEL_FILE).exists()
        # Another study of the series may have evaluated the same trial
        wants_test = look and trial.test_error is None and not images_hang
        sibling = search.siblings.tested(trial) if wants_test else None
        if sibling is not None and sibling.test_error is not None:
            search.write_test_error(trial.trial_id, sibling.test_error, sibling.wrong_images.get("test", ""))
            wants_test = False
        if not (wants_test or needs_model):
            continue
        weights = folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE
        try:
            trainer = restore_trainer(trial, weights, data, device)
            test_error = trainer.evaluate("test")["error"] if wants_test else None
        except (InputError, HungError, RuntimeError, MemoryError) as error:
            no_memory, hung = out_of_memory(error), isinstance(error, HungError)
            if not (no_memory or hung or isinstance(error, InputError)):
                raise
            lacks_memory, images_hang = lacks_memory or no_memory, images_hang or hung
            aims = ["evaluated on the test split"] * wants_test + ["written as a model"] * needs_model
            message = f"not {' and not '.join(aims)}: {first_line(error)}"
            search.write_notice(trial.trial_id, message)
            print(f"{trial.trial_id} is {message}")
            continue
        if test_error is not None:
            search.write_test_error(
                trial.trial_id, test_error, encode_wrong_images(trainer.wrong_images["test"].cpu().numpy())
            )
        if needs_model:
            write_model(model_folder, trial, trainer, data)
    return [] if look and not (images_hang or lacks_memory) else _test_lines(search.record, folder)


def _test_lines(study: StudyRecord, folder: Path) -> list[str]:
    """How to look at the test split again, where trials of the front lack a test error."""
    missing = [trial for trial in front_trials(study.trials.values()) if trial.test_error is None]
    if not missing:
        return []
    return [
        f"without a test error: {format_counted(len(missing), 'trial')} of the front and references; a further look, "
        f"which is counted: {resume_command(folder)} --test"
    ]


def restore_trainer(trial: TrialRecord, path: Path, data: ImageData, device: str) -> Trainer:
    """Make a trainer with a trial's last weights.

    Args:
        trial: a trial that has ended.
        path: its checkpoint.
        data: the images that it was trained on.
        device: "cpu" or "cuda".

    Returns:
        The trainer, without a teacher.

    Raises:
        InputError: the checkpoint is damaged, is not there or cannot be read, or this version of the code cannot use
            it; the message says which.
    """
    try:
        state, _ = load_tensors(path, device)
    except FileNotFoundError as error:
        raise InputError(f"its weights are not there: {path}") from error
    except OSError as error:
        raise InputError(f"its weights cannot be read: {one_line(error)}") from error
    specification = trial.built_specification
    assert specification is not None  # it has been trained
    trainer = make_trainer(without_teacher(specification), data, device)
    try:
        trainer.load_state(state)
    except (KeyError, RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"this version of the code cannot use {path}: {first_line(error)}") from error
    return trainer


def write_model(folder: Path, trial: TrialRecord, trainer: Trainer, data: ImageData) -> None:
    """Write a trial's network as a model that can be used without the study.

    The tracker registers those of the front in MLflow. A network that cannot be written is skipped with a printed line.

    Args:
        folder: the folder to write the model into.
        trial: the trial.
        trainer: a trainer with the trial's weights, see `restore_trainer`.
        data: the images that it was trained on.
    """
    specification = trial.built_specification
    assert specification is not None
    try:
        save_classifier(folder, trainer.network, data, specification.model(data.image_shape, len(data.classes)))
    except InputError as error:
        print(f"{trial.trial_id} is not written as a model: {error}")
