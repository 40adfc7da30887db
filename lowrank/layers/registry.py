"""The table of methods: one line each, by which every other part of the project finds a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowrank.errors import InputError, show_value, unknown
from lowrank.utils import validate_model

if TYPE_CHECKING:
    from lowrank.layers.base_method import Method


class _MethodTable(Mapping[str, "type[Method]"]):
    """Classes of methods by name; a class is imported when it is looked up, because layers import torch."""

    def __init__(self, paths: Mapping[str, str]):
        self._paths = paths

    def __getitem__(self, name: str) -> type[Method]:
        module, _, attribute = self._paths[name].partition(":")
        method: type[Method] = getattr(import_module(module), attribute)
        return method

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


METHODS: Mapping[str, type[Method]] = _MethodTable(
    {
        "dense": "lowrank.layers.dense:Dense",
        "separable": "lowrank.layers.dense:Separable",
        "tensor_train": "lowrank.layers.tensor.tensor_train:TensorTrain",
        "tucker": "lowrank.layers.tensor.tucker:Tucker",
        "cp": "lowrank.layers.tensor.cp:CP",
        "hashed_full": "lowrank.layers.blocks.hashed:HashedFull",
        "hashed": "lowrank.layers.blocks.hashed:Hashed",
        "hashed_both": "lowrank.layers.blocks.hashed:HashedBoth",
        "acdc": "lowrank.layers.acdc.layer:ACDC",
        "shuffle": "lowrank.layers.blocks.shuffle:Shuffle",
        "bottleneck": "lowrank.layers.low_rank.bottleneck:Bottleneck",
        "tied_bottleneck": "lowrank.layers.low_rank.tied_bottleneck:TiedBottleneck",
        "monarch": "lowrank.layers.blocks.monarch:Monarch",
        "svd": "lowrank.layers.low_rank.svd:SVD",
        "spatial_svd": "lowrank.layers.low_rank.spatial_svd:SpatialSVD",
        "tucker2": "lowrank.layers.low_rank.tucker2:Tucker2",
        "cp_kernel": "lowrank.layers.low_rank.cp_kernel:CPKernel",
        "tensor_train_kernel": "lowrank.layers.low_rank.tensor_train_kernel:TensorTrainKernel",
    }
)

VARIATIONAL_METHODS: Mapping[str, type[Method]] = _MethodTable({"bayesian": "lowrank.layers.bayesian.method:Bayesian"})
"""Methods whose sizes follow from training: they have no exact size before it, and no structure to fit to a weight."""


def method_class(name: str) -> type[Method]:
    """Look a method up by name.

    Args:
        name: a key of `METHODS` or `VARIATIONAL_METHODS`.

    Returns:
        The class of its settings.

    Raises:
        InputError: there is no method of this name; the message lists the names.
    """
    if not isinstance(name, str):
        raise InputError(f"`method.name` must be a text, such as separable, but got {show_value(name)}")
    if name in VARIATIONAL_METHODS:
        return VARIATIONAL_METHODS[name]
    if name not in METHODS:
        raise unknown("method", name, (*METHODS, *VARIATIONAL_METHODS))
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
    return validate_model(method_class(settings.get("name", "")), settings, "method")
