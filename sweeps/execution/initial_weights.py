"""Sets the weights that a trial starts from: those of a trained network, from a file or of a trial of this study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.init_from_dense import init_from_network
from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io.tensor_file import load_tensors
from lowrank.networks.registry import NetworkSettings, make_network
from sweeps.execution.checkpoint_relay import CheckpointLocation
from sweeps.records.specification import TRIAL_WEIGHTS

NETWORK_PREFIX = "network."  # of the network's weights in a trial's checkpoint


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
        InputError: the weights are missing or belong to another network.
    """
    start = specification.get("start")
    if start is None:
        return
    path, weights = _load(str(start["from"]), study_dir, relay)
    with torch.random.fork_rng(devices=[]):
        settings = NetworkSettings(**specification["network"])
        dense = make_network(settings, data.image_shape, len(data.classes))
    try:
        dense.load_state_dict(_without_prefix(weights))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        expected = f"a dense {settings.name} of width {settings.width:g}"
        raise InputError(f"{path} does not hold {expected}: {detail}") from error
    init_from_network(student, dense)


def _load(source: str, study_dir: str, relay: str | None) -> tuple[Path, dict[str, Tensor]]:
    """Return the file of `source`, a path or `trial:ID` for a trial of the study, and its tensors."""
    path = Path(source)
    if source.startswith(TRIAL_WEIGHTS):
        location = CheckpointLocation(study_dir, source.removeprefix(TRIAL_WEIGHTS), relay)
        location.download()
        path = location.path
    if not path.is_file():
        raise InputError(f"the weights to start from are not there: {path}")
    return path, load_tensors(path)[0]


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's tensors: a checkpoint has them under a prefix, a model file has nothing else."""
    prefixed = {
        name.removeprefix(NETWORK_PREFIX): tensor for name, tensor in weights.items() if name.startswith(NETWORK_PREFIX)
    }
    return prefixed or weights
