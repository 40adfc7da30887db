"""One structured map a file; `lowrank.methods` is the table of them all."""

from lowrank.layers.acdc import ACDC, ACDCMap
from lowrank.layers.base import ConvShape, Method, SeparableConv2d, SeparableMethod, StructuredMap
from lowrank.layers.bottleneck import Bottleneck, BottleneckMap
from lowrank.layers.cp import CP, CPMap
from lowrank.layers.dense import Dense, DenseMap, Separable
from lowrank.layers.factored import FactoredMap
from lowrank.layers.hashed import Hashed, HashedBoth, HashedFull, HashedMap
from lowrank.layers.linear import StructuredLinear
from lowrank.layers.monarch import Monarch, MonarchMap
from lowrank.layers.shuffle import Shuffle, ShuffleMap
from lowrank.layers.tensor_train import TensorTrain, TensorTrainMap
from lowrank.layers.tied_bottleneck import TiedBottleneck, TiedBottleneckMap
from lowrank.layers.tucker import Tucker, TuckerMap

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
