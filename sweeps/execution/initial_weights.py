"""Sets the weights that a trial starts from: those of a trained network, from a file or of a trial of this study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lowrank.compression import init_from_network
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.networks import NetworkSettings
from sweeps.execution.checkpoint_relay import CheckpointLocation
from sweeps.records import TRIAL_WEIGHTS
from sweeps.trials import check_fingerprint, load_trained_network


def set_initial_weights(
    student: nn.Module, specification: Mapping[str, Any], data: ImageData, study_dir: str, relay: str | None = None
) -> None:
    """Set the weights of a student in place; without a `start` in its specification they stay as drawn.

    Args:
        student: the network of the specification.
        specification: of the trial.
        data: its data set.
        study_dir: folder of the study.
        relay: name of the checkpoint relay, through which the weights of a trial come; None for none.

    Raises:
        InputError: the weights are missing, have changed since the study began, or belong to another network.
    """
    start = specification.get("start")
    if start is None:
        return
    settings, seed = NetworkSettings(**specification["network"]), int(specification["seed"])
    source = str(start["from"])
    if source.startswith(TRIAL_WEIGHTS):
        location = CheckpointLocation(study_dir, source.removeprefix(TRIAL_WEIGHTS), relay)
        location.download()
        if not location.path.is_file():
            raise InputError(f"the weights to start from are not there: {location.path}")
        dense, _ = load_trained_network(settings, location.path, data)
    else:
        check_fingerprint(Path(source), str(start["fingerprint"]))
        dense, _ = load_trained_network(settings, Path(source), data, seed=seed, allow_new_head=True)
    init_from_network(student, dense)
