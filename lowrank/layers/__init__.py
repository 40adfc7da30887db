"""Structured layers: each method's settings, exact counts and torch modules, one family a file.

Entry point: `registry.make_method` makes a method from its settings; `Method.build` builds its layer for a `ConvShape`.
Each layer equals a dense convolution or linear map, whose weight `dense_weight` gives.
Must not import any package of this project but `lowrank.errors`, `lowrank.kernels` and `lowrank.utils`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank.layers.acdc.layer import ACDC, ACDCMap
    from lowrank.layers.base_layer import SeparableConv2d, StructuredMap
    from lowrank.layers.base_method import ConvShape, Method, SeparableMethod
    from lowrank.layers.blocks.hashed import Hashed, HashedBoth, HashedFull, HashedMap
    from lowrank.layers.blocks.monarch import Monarch, MonarchMap
    from lowrank.layers.blocks.shuffle import Shuffle, ShuffleMap
    from lowrank.layers.dense import Dense, DenseMap, Separable
    from lowrank.layers.factored import FactoredMap
    from lowrank.layers.linear import StructuredLinear
    from lowrank.layers.low_rank.bottleneck import Bottleneck, BottleneckMap
    from lowrank.layers.low_rank.tied_bottleneck import TiedBottleneck, TiedBottleneckMap
    from lowrank.layers.tensor.cp import CP, CPMap
    from lowrank.layers.tensor.tensor_train import TensorTrain, TensorTrainMap
    from lowrank.layers.tensor.tucker import Tucker, TuckerMap

_MODULES = {  # by exported name; imported on first use, because they import torch
    "ACDC": "lowrank.layers.acdc.layer",
    "ACDCMap": "lowrank.layers.acdc.layer",
    "Bottleneck": "lowrank.layers.low_rank.bottleneck",
    "BottleneckMap": "lowrank.layers.low_rank.bottleneck",
    "CP": "lowrank.layers.tensor.cp",
    "CPMap": "lowrank.layers.tensor.cp",
    "ConvShape": "lowrank.layers.base_method",
    "Dense": "lowrank.layers.dense",
    "DenseMap": "lowrank.layers.dense",
    "FactoredMap": "lowrank.layers.factored",
    "Hashed": "lowrank.layers.blocks.hashed",
    "HashedBoth": "lowrank.layers.blocks.hashed",
    "HashedFull": "lowrank.layers.blocks.hashed",
    "HashedMap": "lowrank.layers.blocks.hashed",
    "Method": "lowrank.layers.base_method",
    "Monarch": "lowrank.layers.blocks.monarch",
    "MonarchMap": "lowrank.layers.blocks.monarch",
    "Separable": "lowrank.layers.dense",
    "SeparableConv2d": "lowrank.layers.base_layer",
    "SeparableMethod": "lowrank.layers.base_method",
    "Shuffle": "lowrank.layers.blocks.shuffle",
    "ShuffleMap": "lowrank.layers.blocks.shuffle",
    "StructuredLinear": "lowrank.layers.linear",
    "StructuredMap": "lowrank.layers.base_layer",
    "TensorTrain": "lowrank.layers.tensor.tensor_train",
    "TensorTrainMap": "lowrank.layers.tensor.tensor_train",
    "TiedBottleneck": "lowrank.layers.low_rank.tied_bottleneck",
    "TiedBottleneckMap": "lowrank.layers.low_rank.tied_bottleneck",
    "Tucker": "lowrank.layers.tensor.tucker",
    "TuckerMap": "lowrank.layers.tensor.tucker",
}

__all__ = [
    "ACDC",
    "CP",
    "ACDCMap",
    "Bottleneck",
    "BottleneckMap",
    "CPMap",
    "ConvShape",
    "Dense",
    "DenseMap",
    "FactoredMap",
    "Hashed",
    "HashedBoth",
    "HashedFull",
    "HashedMap",
    "Method",
    "Monarch",
    "MonarchMap",
    "Separable",
    "SeparableConv2d",
    "SeparableMethod",
    "Shuffle",
    "ShuffleMap",
    "StructuredLinear",
    "StructuredMap",
    "TensorTrain",
    "TensorTrainMap",
    "TiedBottleneck",
    "TiedBottleneckMap",
    "Tucker",
    "TuckerMap",
]


def __getattr__(name: str) -> Any:
    """Import an exported name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
