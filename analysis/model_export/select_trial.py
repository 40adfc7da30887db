"""Which trial of a study is exported, and its trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.stats.front import FrontPoint, collect_points
from lowrank.data import DataSettings, ImageData, load_data
from lowrank.errors import InputError
from lowrank.io.model_file import ModelSpecification
from lowrank.io.tensor_file import load_tensors
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from sweeps.records.load import find_trial
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import CHECKPOINT_FILE, TRIALS_FOLDER

NETWORK = "network."  # before the names of the weights in a trial's checkpoint


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a chosen model must keep: parameters at most, validation error (percent) at most."""

    params: float | None = None
    error: float | None = None

    def text(self) -> str:
        """E.g. `at most 700,000 parameters`; `no limit` where there is none."""
        parts = [f"at most {self.params:,.0f} parameters"] if self.params is not None else []
        parts += [f"a validation error of at most {self.error:g} %"] if self.error is not None else []
        return " and ".join(parts) or "no limit"


def choose(study: StudyRecord, pick: str, limits: Limits) -> FrontPoint:
    """The trial of the lowest validation error, or the smallest, among those of the search within the limits.

    Raises:
        InputError: none is; the text names the nearest.
    """
    done = [point for point in collect_points(study) if point.eligible]
    if not done:
        raise InputError(f"no trial of {study.name} was trained to its end")
    fitting = [point for point in done if _keeps(point, limits)]
    if not fitting:
        small = min(done, key=lambda point: point.params)
        good = min(done, key=lambda point: point.error)
        raise InputError(
            f"no completed trial has {limits.text()}: the smallest has {small.params:,} parameters "
            f"({small.error:.2f} %), the best {good.error:.2f} % ({good.params:,} parameters)"
        )
    if pick == "smallest":
        return min(fitting, key=lambda point: (point.params, point.error, point.trial_id))
    return min(fitting, key=lambda point: (point.error, point.params, point.trial_id))


def _keeps(point: FrontPoint, limits: Limits) -> bool:
    small = limits.params is None or point.params <= limits.params
    return small and (limits.error is None or point.error <= limits.error)


def completed_point(study: StudyRecord, id_prefix: str) -> FrontPoint:
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


def trial_data(trial: TrialRecord, data_dir: Path | None) -> ImageData | None:
    """The trial's own images where they are at hand (nothing is downloaded), else None; never another split."""
    fields: dict[str, Any] = dict(trial.specification["data"])
    expected = fields.pop("fingerprint", None)
    try:
        data = load_data(DataSettings(**fields), data_dir, download=False)
    except InputError:
        return None  # the proof then runs on random images, and says so
    return data if data.fingerprint == expected else None


def specification_of(study: StudyRecord, trial: TrialRecord, data: ImageData | None) -> ModelSpecification:
    """What the trial built; raises InputError when neither the images nor the header tell their shape."""
    about = study.header.get("data", {})
    shape = data.image_shape if data else about.get("image_shape")
    classes = len(data.classes) if data else about.get("classes")
    if not shape or not classes:
        name = trial.specification["data"].get("name")
        raise InputError(f"the shape of {name}'s images is not on record; say with --data-dir where they are")
    spec = trial.specification
    channels, height, width = shape
    return ModelSpecification(
        network=NetworkSettings(**spec["network"]), method=make_method(spec["method"]),
        allocation=spec.get("allocation"), image_shape=(channels, height, width), classes=classes,
    )  # fmt: skip


def trained_network(folder: Path, trial_id: str, specification: ModelSpecification) -> nn.Module:
    """The trial's network with its trained weights, in evaluation mode.

    Raises:
        InputError: the weights are not there, damaged, or another network's.
    """
    path = folder / TRIALS_FOLDER / trial_id / CHECKPOINT_FILE
    if not path.is_file():
        raise InputError(f"the weights of trial {trial_id} are not there: {path}")
    state, _ = load_tensors(path)
    weights = {name.removeprefix(NETWORK): tensor for name, tensor in state.items() if name.startswith(NETWORK)}
    network = specification.build()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} holds another network's weights: {detail}") from error
    return network.float().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
