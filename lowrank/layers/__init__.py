"""Structured layers: each method's settings, exact counts and torch modules, one family a file.

Entry point: `registry.make_method` makes a method from its settings; `Method.build` builds its layer for a `ConvShape`.
Each layer equals a dense convolution or linear map, whose weight `dense_weight` gives.
Must not import any package of this project but `lowrank.errors`, `lowrank.kernels` and `lowrank.utils`.
"""

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
