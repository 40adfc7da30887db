"""Chooses the trial of a study that is exported, and loads its trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from analysis.stats import FrontPoint, collect_points
from lowrank.data import ImageData, check_data_folder, load_data
from lowrank.errors import InputError
from lowrank.io import (
    CLASSIFIER_FILE,
    ImagePreprocessing,
    ModelSpecification,
    data_preprocessing,
    find_preprocessing,
    load_model,
    load_tensors,
    read_specification,
)
from lowrank.networks import check_own_code
from lowrank.serving import MODEL_FILE
from lowrank.utils import last_line
from sweeps.records import (
    CHECKPOINT_FILE,
    MODELS_FOLDER,
    TRIALS_FOLDER,
    StudyRecord,
    TrialRecord,
    TrialSpec,
    find_trial,
)

WEIGHT_PREFIX = "network."  # of the names of the weights in a trial's checkpoint


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Parameters and validation error (percent) that a trial may have at most."""

    params: float | None = None
    error: float | None = None

    def text(self) -> str:
        """Return the limits in words, e.g. `at most 700,000 parameters` or `no limit`."""
        parts = [f"at most {self.params:,.0f} parameters"] if self.params is not None else []
        parts += [f"a validation error of at most {self.error:g} %"] if self.error is not None else []
        return " and ".join(parts) or "no limit"


def choose_trial(study: StudyRecord, pick: str, limits: Limits) -> FrontPoint:
    """Choose a trial of the search.

    Settings of several seeds count by the mean of their errors; the seed that is exported must be within the limit
    too.

    Args:
        study: the records.
        pick: `best` for the lowest validation error, `smallest` for the fewest parameters.
        limits: what the trial may have at most.

    Returns:
        The trial's point.

    Raises:
        InputError: no trial was completed, or none is within the limits; the message names the nearest.
    """
    completed = [point for point in collect_points(study) if point.eligible and point.competes]
    if not completed:
        raise InputError(f"no trial of {study.name} was trained to its end")
    fitting = [point for point in completed if _is_within(point, limits)]
    if not fitting:
        smallest = min(completed, key=lambda point: point.params)
        best = min(completed, key=lambda point: point.error)
        raise InputError(
            f"no completed trial has {limits.text()}: the smallest has {smallest.params:,} parameters "
            f"({_error_text(smallest)}), the best {_error_text(best)} ({best.params:,} parameters)"
        )
    if pick == "smallest":
        return min(fitting, key=lambda point: (point.params, point.error, point.trial_id))
    return min(fitting, key=lambda point: (point.error, point.params, point.trial_id))


def _is_within(point: FrontPoint, limits: Limits) -> bool:
    if limits.params is not None and point.params > limits.params:
        return False
    return limits.error is None or max(point.error, point.own_error) <= limits.error


def _error_text(point: FrontPoint) -> str:
    """The error of the network that would be exported, with the mean of its setting's seeds where there are several."""
    mean = f", mean of {point.seeds} seeds {point.error:.2f} %" if point.seeds > 1 else ""
    return f"{point.own_error:.2f} %{mean}"


def find_completed(study: StudyRecord, id_prefix: str) -> FrontPoint:
    """Find a completed trial by the beginning of its id.

    Args:
        study: where to look.
        id_prefix: the whole id, or the first characters of it.

    Returns:
        The trial's point.

    Raises:
        InputError: the prefix is too short, or fits no completed trial or more than one.
    """
    trial = find_trial(study, id_prefix, completed=True)
    return next(point for point in collect_points(study) if point.trial_id == trial.trial_id)


def find_trial_data(trial: TrialRecord, data_dir: Path | None) -> tuple[ImageData | None, str]:
    """Load the images of a trial if this machine has them; nothing is downloaded.

    Args:
        trial: the trial, whose record may come from anybody.
        data_dir: where the user says that data sets lie; None for the default folder. Nothing else is read.

    Returns:
        The data set, and "". Without it None and why: it is not on this machine or lies elsewhere, or its images or
        splits are not the trial's.
    """
    section = _specification(trial).data
    try:
        settings = section.data_settings
        check_data_folder(settings.name, data_dir, f"the record of trial {trial.trial_id}", by_name=False)
        data = load_data(settings, data_dir, download=False)
    except InputError as error:
        return None, str(error)
    expected = section.fingerprint
    if data.fingerprint != expected:
        return None, f"{data.name} has the fingerprint {data.fingerprint} here, but the trial was trained on {expected}"
    return data, ""


def _specification(trial: TrialRecord) -> TrialSpec:
    specification = trial.built_specification
    if specification is None:
        raise InputError(f"the specification of trial {trial.trial_id} is not on record")
    return specification


@dataclass(frozen=True, kw_only=True)
class TrainedTrial:
    """A trial's network with its trained weights.

    Attributes:
        specification: of the network.
        network: in float32 and in evaluation mode.
        preprocessing: what it expects of an image; None where that is not on record.
    """

    specification: ModelSpecification
    network: nn.Module
    preprocessing: ImagePreprocessing | None


def load_trained(
    folder: Path, study: StudyRecord, trial: TrialRecord, data: ImageData | None, *, allow_code: bool = False
) -> TrainedTrial:
    """Load a trial's network.

    It is taken from the study's models where it is one of them, else from the trial's checkpoint.

    Args:
        folder: of the study.
        study: the records, which may come from anybody.
        trial: the trial.
        data: its images; None where they are not at hand.
        allow_code: whether its network may be a function of the user's code.

    Returns:
        The network.

    Raises:
        InputError: the network is code that is not allowed, or its weights are missing, damaged, or another network's.
    """
    name = _specification(trial).network.name
    check_own_code([name], allow_code, source="the study")
    model_folder = folder / MODELS_FOLDER / trial.trial_id
    preprocessing = None if data is None else data_preprocessing(data)
    if preprocessing is None and (model_folder / CLASSIFIER_FILE).is_file():
        preprocessing = find_preprocessing(model_folder)
    if (model_folder / MODEL_FILE).is_file():
        specification = read_specification(model_folder / MODEL_FILE)
        network = load_model(model_folder / MODEL_FILE, trusted_network=name if allow_code else None)
    else:
        specification = _trial_specification(study, trial, data)
        network = _load_checkpoint(folder / TRIALS_FOLDER / trial.trial_id / CHECKPOINT_FILE, specification)
    network.float().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return TrainedTrial(specification=specification, network=network.eval(), preprocessing=preprocessing)


def _trial_specification(study: StudyRecord, trial: TrialRecord, data: ImageData | None) -> ModelSpecification:
    """The specification from which a trial's network is built; images or the study's header tell shape and classes."""
    header = study.header.data
    shape = data.image_shape if data else header.image_shape
    classes = len(data.classes) if data else header.classes
    spec = _specification(trial)
    if not shape or not classes:
        raise InputError(f"the shape of {spec.data.name}'s images is not on record; say with --data-dir where they are")
    return spec.model(shape, classes)


def _load_checkpoint(path: Path, specification: ModelSpecification) -> nn.Module:
    """Build a network with the weights of a trial's checkpoint."""
    if not path.is_file():
        raise InputError(f"the weights of trial {path.parent.name} are not there: {path}")
    state, _ = load_tensors(path)
    weights = {
        name.removeprefix(WEIGHT_PREFIX): tensor for name, tensor in state.items() if name.startswith(WEIGHT_PREFIX)
    }
    network = specification.build()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} holds another network's weights: {last_line(error)}") from error
    return network
