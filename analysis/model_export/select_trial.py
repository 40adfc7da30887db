"""Chooses the trial of a study that is exported, and loads its trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.stats import FrontPoint, collect_points
from lowrank.data import DataSettings, ImageData, load_data
from lowrank.errors import InputError
from lowrank.io import ModelSpecification, load_tensors
from lowrank.layers import make_method
from lowrank.networks import NetworkSettings
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER, StudyRecord, TrialRecord, find_trial

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
            f"({smallest.error:.2f} %), the best {best.error:.2f} % ({best.params:,} parameters)"
        )
    if pick == "smallest":
        return min(fitting, key=lambda point: (point.params, point.error, point.trial_id))
    return min(fitting, key=lambda point: (point.error, point.params, point.trial_id))


def _is_within(point: FrontPoint, limits: Limits) -> bool:
    params, error = limits.params, limits.error
    return (params is None or point.params <= params) and (error is None or point.error <= error)


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


def find_trial_data(trial: TrialRecord, data_dir: Path | None) -> ImageData | None:
    """Load the images of a trial if this machine has them; nothing is downloaded.

    Args:
        trial: the trial.
        data_dir: where the data set lies; None for the default folder.

    Returns:
        The data set; None if it is not on this machine, or its images or splits are not the trial's.
    """
    fields: dict[str, Any] = dict(trial.specification["data"])
    expected = fields.pop("fingerprint", None)
    try:
        data = load_data(DataSettings(**fields), data_dir, download=False)
    except InputError:
        return None  # the files are then compared on random images, and the card says so
    return data if data.fingerprint == expected else None


def model_specification(study: StudyRecord, trial: TrialRecord, data: ImageData | None) -> ModelSpecification:
    """Return the specification from which a trial's network is built.

    Args:
        study: the records.
        trial: the trial.
        data: its images; None where they are not at hand.

    Returns:
        The specification.

    Raises:
        InputError: neither the images nor the study's header tell the shape and the classes.
    """
    header = study.header.get("data", {})
    shape = data.image_shape if data else header.get("image_shape")
    classes = len(data.classes) if data else header.get("classes")
    if not shape or not classes:
        name = trial.specification["data"].get("name")
        raise InputError(f"the shape of {name}'s images is not on record; say with --data-dir where they are")
    spec = trial.specification
    channels, height, width = shape
    return ModelSpecification(
        network=NetworkSettings(**spec["network"]), method=make_method(spec["method"]),
        allocation=spec.get("allocation"), image_shape=(channels, height, width), classes=classes,
    )  # fmt: skip


def load_network(folder: Path, trial_id: str, specification: ModelSpecification) -> nn.Module:
    """Load a trial's network with its trained weights.

    Args:
        folder: of the study.
        trial_id: of the trial.
        specification: of its network.

    Returns:
        The network, in float32 and in evaluation mode.

    Raises:
        InputError: the weights are missing, damaged, or another network's.
    """
    path = folder / TRIALS_FOLDER / trial_id / CHECKPOINT_FILE
    if not path.is_file():
        raise InputError(f"the weights of trial {trial_id} are not there: {path}")
    state, _ = load_tensors(path)
    weights = {
        name.removeprefix(WEIGHT_PREFIX): tensor for name, tensor in state.items() if name.startswith(WEIGHT_PREFIX)
    }
    network = specification.build()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} holds another network's weights: {detail}") from error
    return network.float().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
