"""What a trial starts from where it is not drawn anew: the weights of a trained network, in a file or of this study."""

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
from sweeps.execution.checkpoint_relay import CheckpointPlace
from sweeps.records.specification import TRIAL_WEIGHTS

NETWORK = "network."  # the prefix of weights in a trial's checkpoint


def start_student(
    student: nn.Module, specification: Mapping[str, Any], data: ImageData, study_dir: str, relay: str | None = None
) -> None:
    """Start `student`, in place, as its specification says; nothing happens where it is drawn anew.

    The weights of a trial of the study come through the relay where there is one. Raises InputError when the weights
    are not there or are another network's.
    """
    start = specification.get("start")
    if start is None:
        return
    path, weights = _weights(str(start["from"]), study_dir, relay)
    with torch.random.fork_rng(devices=[]):
        settings = NetworkSettings(**specification["network"])
        teacher = make_network(settings, data.image_shape, len(data.classes))
    try:
        teacher.load_state_dict(_of_network(weights))
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        wanted = f"a dense {settings.name} of width {settings.width:g}"
        raise InputError(f"{path} does not hold {wanted}: {detail}") from error
    init_from_network(student, teacher)


def _weights(source: str, study_dir: str, relay: str | None) -> tuple[Path, dict[str, Tensor]]:
    """The file of `source`, a path or `trial:ID` for a trial of the study, and what is in it."""
    path = Path(source)
    if source.startswith(TRIAL_WEIGHTS):
        place = CheckpointPlace(study_dir, source.removeprefix(TRIAL_WEIGHTS), relay)
        place.fetch()
        path = place.path
    if not path.is_file():
        raise InputError(f"the weights to start from are not there: {path}")
    return path, load_tensors(path)[0]


def _of_network(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors: a checkpoint keeps them under a prefix, a model file holds nothing else."""
    found = {name.removeprefix(NETWORK): value for name, value in weights.items() if name.startswith(NETWORK)}
    return found or weights
