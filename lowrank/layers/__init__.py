"""One structured map a file; `lowrank.methods` is the table of them all."""

from lowrank.layers.base import ConvShape, Method, SeparableConv2d, SeparableMethod, StructuredMap
from lowrank.layers.bottleneck import Bottleneck, BottleneckMap
from lowrank.layers.dense import Dense, DenseMap, Separable
from lowrank.layers.tensor_train import TensorTrain, TensorTrainMap
from lowrank.layers.tucker import Tucker, TuckerMap

__all__ = [
    "Bottleneck",
    "BottleneckMap",
    "ConvShape",
    "Dense",
    "DenseMap",
    "Method",
    "Separable",
    "SeparableConv2d",
    "SeparableMethod",
    "StructuredMap",
    "TensorTrain",
    "TensorTrainMap",
    "Tucker",
    "TuckerMap",
]
