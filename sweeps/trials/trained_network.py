"""The trained dense network that trials start from: read from a file, and checked before a study begins."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lowrank.data import ImageData
from lowrank.errors import InputError
from lowrank.io import WeightReport, load_weights
from lowrank.networks import NetworkSettings, make_network
from lowrank.utils import file_hash
from sweeps.space import Space

_FINGERPRINT_DIGITS = 16


def weights_fingerprint(path: Path) -> str:
    """Compute the fingerprint of a file of weights, which belongs to the ids of the trials that start from it.

    Args:
        path: the file.

    Returns:
        The first 16 hexadecimal digits of its sha256.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"the weights to start from are not there: {path}")
    return file_hash(path)[:_FINGERPRINT_DIGITS]


def check_fingerprint(path: Path, expected: str) -> None:
    """Check that a file of weights is the one that a trial's specification means.

    Args:
        path: the file.
        expected: its fingerprint in the specification.

    Raises:
        InputError: the file is missing or has another fingerprint.
    """
    fingerprint = weights_fingerprint(path)
    if fingerprint != expected:
        raise InputError(
            f"the weights to start from have changed: {path} has the fingerprint {fingerprint}, but the study began "
            f"with {expected}"
        )


def load_trained_network(
    settings: NetworkSettings, path: Path, data: ImageData, *, seed: int = 0, allow_new_head: bool = False
) -> tuple[nn.Module, WeightReport]:
    """Build a dense network and put the weights of a file into it.

    Torch's generators stay as they are.

    Args:
        settings: of the network; names of trained weights in them are not used.
        path: the file, see `lowrank.io.weight_files`.
        data: the set whose images and classes the network is for.
        seed: of a head that begins anew.
        allow_new_head: let a head for other classes begin anew.

    Returns:
        The network, and what was loaded.

    Raises:
        InputError: the file cannot be read or does not fit the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(settings.model_copy(update={"weights": None}), data.image_shape, len(data.classes))
    return network, load_weights(network, path, allow_new_head=allow_new_head)


def check_start(space: Space, data: ImageData) -> list[str]:
    """Check that the file which trials start from fits the space's network.

    Args:
        space: what is searched.
        data: its images.

    Returns:
        What the user should know: the file, and a head that begins anew. Empty for a space without such a file.

    Raises:
        InputError: the file is missing, cannot be read, or does not fit.
    """
    domain = space.domains.get("start.how")
    kinds = domain.corners() if domain else (space.start.how,)
    if space.start.weights is None or "dense" not in kinds:
        return []
    path = Path(space.start.weights)
    if not path.is_file():
        raise InputError(f"`start.weights`: there is no file {path}")
    try:
        _, report = load_trained_network(space.network, path, data, allow_new_head=True)
    except InputError as error:
        raise InputError(f"`start.weights`: {error}") from error
    return report.lines()
