"""The trained dense network that trials start from: read from a file, and checked before a study begins."""

from __future__ import annotations

import hashlib
import shlex
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import nn

from lowrank.compression import find_trained_weights
from lowrank.data import ImageData
from lowrank.distillation import RECORD_FILE, read_record
from lowrank.errors import InputError
from lowrank.io import WeightReport, load_weights
from lowrank.networks import (
    CONVERTING_NETWORKS,
    ImageShape,
    NetworkSettings,
    make_network,
    takes_width,
    without_weights,
)
from lowrank.utils import file_hash
from sweeps.records import TrialSpec
from sweeps.space import NETWORK_WEIGHTS, Space

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


@lru_cache(maxsize=16)
def builder_fingerprint(settings: NetworkSettings, image_shape: ImageShape, classes: int) -> str:
    """Compute the fingerprint of the weights that a network is built with.

    Layers that are drawn at random, such as a new head, do not count. Each process computes it once.

    Args:
        settings: of the network, with the trained weights that they name.
        image_shape: (C, H, W).
        classes: number of classes.

    Returns:
        The first 16 hexadecimal digits of a sha256.

    Raises:
        InputError: the network draws all of its weights, or its trained ones cannot be had.
    """
    weights = find_trained_weights(settings, image_shape, classes)
    if not weights:
        raise InputError(
            f"`start.weights: {NETWORK_WEIGHTS}` needs a network that is built with trained weights, but "
            f"{settings.name} draws its weights by the seed"
        )
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def check_fingerprint(specification: TrialSpec, images: tuple[ImageShape, int] | None) -> None:
    """Check that the weights from which a trial starts have not changed.

    Args:
        specification: of the trial; its `start` names a file, or NETWORK_WEIGHTS.
        images: shape (C, H, W) and number of classes, to build the network; None leaves its weights unchecked.

    Raises:
        InputError: a file is missing, or the weights have another fingerprint.
    """
    assert specification.start is not None
    source, expected = specification.start.source, specification.start.fingerprint
    if source != NETWORK_WEIGHTS:
        fingerprint = weights_fingerprint(Path(source))
    elif images is None:
        return
    else:
        settings = specification.network
        source, fingerprint = settings.name, builder_fingerprint(settings, *images)
    if fingerprint != expected:
        raise InputError(
            f"the weights to start from have changed: {source} has the fingerprint {fingerprint}, but the study began "
            f"with {expected}"
        )


def load_initial_network(settings: NetworkSettings, source: str, data: ImageData, *, seed: int = 0) -> nn.Module:
    """Build the trained dense network that trials start from.

    Torch's generators stay as they are.

    Args:
        settings: of the network.
        source: a file of weights, or NETWORK_WEIGHTS for those that the network is built with.
        data: the set whose images and classes the network is for.
        seed: of a head that begins anew.

    Returns:
        The network.

    Raises:
        InputError: the file cannot be read or does not fit the network, or the network cannot be built.
    """
    if source != NETWORK_WEIGHTS:
        return load_trained_network(settings, Path(source), data, seed=seed, allow_new_head=True)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_network(settings, data.image_shape, len(data.classes))


def trained_settings(network: NetworkSettings) -> NetworkSettings:
    """Return the settings of the trained network itself, of which trials have smaller forms.

    Args:
        network: of a space or a trial.

    Returns:
        The same network; nothing in it is to be substituted, and no published weights are named.
    """
    return without_weights(network).model_copy(update={"substitute_all": False})


def trained_epochs(path: Path) -> int | None:
    """Read for how many epochs a network was trained from the record beside its weights.

    Args:
        path: the file of weights.

    Returns:
        The number; None where nothing is on record.

    Raises:
        InputError: the record is damaged.
    """
    record = read_record(path.with_name(RECORD_FILE))
    return None if record is None else int(str(record.train["epochs"]))


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
        network = make_network(trained_settings(settings), data.image_shape, len(data.classes))
    return network, load_weights(network, path, allow_new_head=allow_new_head)


def fetch_weights(space: Space, data: ImageData) -> None:
    """Load the trained weights that a space's networks name, so that trials have them.

    What is not on this machine is downloaded now, once, and not while trials run.

    Args:
        space: what is searched.
        data: its images.

    Raises:
        InputError: weights are unknown, or cannot be had.
    """
    fields = ("name", "weights")
    choices = [
        domain.corners() if (domain := space.domains.get(f"network.{field}")) else (getattr(space.network, field),)
        for field in fields
    ]
    for values in product(*choices):
        settings = space.network.model_copy(update=dict(zip(fields, values, strict=True)))
        if settings.weights is not None:
            with torch.random.fork_rng(devices=[]):
                make_network(settings, data.image_shape, len(data.classes))


def check_start(space: Space, data: ImageData) -> list[str]:
    """Check that the weights which trials start from fit the space's network.

    Args:
        space: what is searched.
        data: its images.

    Returns:
        What the user should know: whose weights, a head that begins anew, and whether the network may have seen the
            validation images. Empty for a space whose trials start from neither a file nor their network's weights.

    Raises:
        InputError: the file is missing, cannot be read, or does not fit; or the network has no trained weights.
    """
    if not space.starts_trained:
        return []
    if space.start.weights == NETWORK_WEIGHTS:
        fingerprint = builder_fingerprint(space.network, data.image_shape, len(data.classes))
        return [
            f"weights: those that {space.network.name} is built with (fingerprint {fingerprint}); if it was trained on "
            f"the validation images of {data.name}, its errors there are too low"
        ]
    path = Path(str(space.start.weights))
    if not path.is_file():
        width = f" --width {space.network.width:g}" if takes_width(space.network.name) else ""
        raise InputError(
            f"`start.weights`: there is no file {path}; give the weights of your trained {space.network.name} by "
            f"--weights FILE, or train one: python sweeps/teacher.py --network {shlex.quote(space.network.name)}"
            f"{width} --data {shlex.quote(space.data.name)} --name NAME"
        )
    try:
        _, report = load_trained_network(space.network, path, data, allow_new_head=True)
    except InputError as error:
        raise InputError(f"`start.weights`: {error}") from error
    return [*report.lines(), *_transform_lines(space.network), *_origin_lines(path, data)]


def _transform_lines(network: NetworkSettings) -> list[str]:
    """Say that a file does not tell whether its network converts its images."""
    if network.name not in CONVERTING_NETWORKS or without_weights(network).transform_input:
        return []
    return [
        f"{network.name} is built without the conversion of images with which torchvision's own weights were trained: "
        "if the file holds those, set `network.transform_input: true`"
    ]


def _origin_lines(path: Path, data: ImageData) -> list[str]:
    """Say what is known of the images that a network was trained on: its error on images that it saw means little."""
    record = read_record(path.with_name(RECORD_FILE))
    if record is None:
        return [
            f"the weights have no {RECORD_FILE} beside them: if their network was trained on the validation images of "
            f"{data.name}, its errors there are too low"
        ]
    if record.fingerprint != data.fingerprint:
        return [
            f"the network was trained on {record.data.get('name')} with the fingerprint {record.fingerprint}, but the "
            f"study has {data.fingerprint}: if it saw the validation images of {data.name}, its errors there are too "
            "low"
        ]
    return []
