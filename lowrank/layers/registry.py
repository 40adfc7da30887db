"""The table of methods: one line each, by which every other part of the project finds a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.errors import unknown
from lowrank.layers.acdc.layer import ACDC
from lowrank.layers.base_method import Method
from lowrank.layers.blocks.hashed import Hashed, HashedBoth, HashedFull
from lowrank.layers.blocks.monarch import Monarch
from lowrank.layers.blocks.shuffle import Shuffle
from lowrank.layers.dense import Dense, Separable
from lowrank.layers.low_rank.bottleneck import Bottleneck
from lowrank.layers.low_rank.cp_kernel import CPKernel
from lowrank.layers.low_rank.spatial_svd import SpatialSVD
from lowrank.layers.low_rank.svd import SVD
from lowrank.layers.low_rank.tensor_train_kernel import TensorTrainKernel
from lowrank.layers.low_rank.tied_bottleneck import TiedBottleneck
from lowrank.layers.low_rank.tucker2 import Tucker2
from lowrank.layers.tensor.cp import CP
from lowrank.layers.tensor.tensor_train import TensorTrain
from lowrank.layers.tensor.tucker import Tucker
from lowrank.utils.validation import validate_model

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "separable": Separable,
    "tensor_train": TensorTrain,
    "tucker": Tucker,
    "cp": CP,
    "hashed_full": HashedFull,
    "hashed": Hashed,
    "hashed_both": HashedBoth,
    "acdc": ACDC,
    "shuffle": Shuffle,
    "bottleneck": Bottleneck,
    "tied_bottleneck": TiedBottleneck,
    "monarch": Monarch,
    "svd": SVD,
    "spatial_svd": SpatialSVD,
    "tucker2": Tucker2,
    "cp_kernel": CPKernel,
    "tensor_train_kernel": TensorTrainKernel,
}


def method_class(name: str) -> type[Method]:
    """Look a method up by name.

    Args:
        name: a key of `METHODS`.

    Returns:
        The class of its settings.

    Raises:
        InputError: there is no method of this name; the message lists the names.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def make_method(settings: Mapping[str, Any]) -> Method:
    """Make a method from its settings.

    Args:
        settings: its `name` and fields, e.g. {"name": "tucker", "dims": 3, "rank_scale": 0.25}.

    Returns:
        The checked settings.

    Raises:
        InputError: the name, a field or a value is not allowed; the message gives the choices.
    """
    return validate_model(method_class(str(settings.get("name", ""))), settings, "method")
