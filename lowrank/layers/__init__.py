"""Structured layers: each method's settings, exact counts and torch modules, one family a file.

Entry point: `registry.make_method` makes a method from its settings; `Method.build` builds its layer for a `ConvShape`.
Each layer equals a dense convolution or linear map, whose weight `dense_weight` gives.
Must not import any package of this project but `lowrank.errors`, `lowrank.kernels` and `lowrank.utils`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.layers.acdc.layer import ACDC as ACDC
    from lowrank.layers.attention import (
        ProjectedAttention as ProjectedAttention,
        disable_fused_encoders as disable_fused_encoders,
        project_attention as project_attention,
    )
    from lowrank.layers.base_layer import (
        SeparableConv2d as SeparableConv2d,
        StructuredMap as StructuredMap,
        checkpoint_rebuild as checkpoint_rebuild,
        relative_error as relative_error,
    )
    from lowrank.layers.base_method import ConvShape as ConvShape, Method as Method, Pair as Pair
    from lowrank.layers.batched_rebuild import BatchedRebuild as BatchedRebuild
    from lowrank.layers.bayesian.layers import (
        VariationalConv2d as VariationalConv2d,
        VariationalLayer as VariationalLayer,
        VariationalLinear as VariationalLinear,
        WeightNoise as WeightNoise,
        posterior_parameters as posterior_parameters,
        variational_layers as variational_layers,
    )
    from lowrank.layers.bayesian.method import Bayesian as Bayesian
    from lowrank.layers.bayesian.priors import (
        GroupScales as GroupScales,
        HorseshoeScales as HorseshoeScales,
        NormalJeffreysScales as NormalJeffreysScales,
    )
    from lowrank.layers.blocks.hashed import Hashed as Hashed, HashedBoth as HashedBoth, HashedFull as HashedFull
    from lowrank.layers.blocks.monarch import Monarch as Monarch
    from lowrank.layers.blocks.shuffle import Shuffle as Shuffle
    from lowrank.layers.dense import Dense as Dense, Separable as Separable
    from lowrank.layers.factored import FactoredMap as FactoredMap
    from lowrank.layers.linear import (
        StructuredLinear as StructuredLinear,
        as_linear as as_linear,
        build_linear as build_linear,
    )
    from lowrank.layers.low_rank.bottleneck import Bottleneck as Bottleneck
    from lowrank.layers.low_rank.cp_kernel import CPKernel as CPKernel
    from lowrank.layers.low_rank.spatial_svd import SpatialSVD as SpatialSVD
    from lowrank.layers.low_rank.svd import SVD as SVD
    from lowrank.layers.low_rank.tensor_train_kernel import TensorTrainKernel as TensorTrainKernel
    from lowrank.layers.low_rank.tied_bottleneck import TiedBottleneck as TiedBottleneck
    from lowrank.layers.low_rank.tucker2 import Tucker2 as Tucker2, leading_columns as leading_columns
    from lowrank.layers.low_rank.whole_kernel import (
        Decomposition as Decomposition,
        KernelChain as KernelChain,
        WholeKernelMethod as WholeKernelMethod,
        chain_product as chain_product,
    )
    from lowrank.layers.registry import (
        METHODS as METHODS,
        VARIATIONAL_METHODS as VARIATIONAL_METHODS,
        make_method as make_method,
        method_class as method_class,
    )
    from lowrank.layers.tensor.cp import CP as CP
    from lowrank.layers.tensor.tensor_train import TensorTrain as TensorTrain
    from lowrank.layers.tensor.tensor_train_ops import best_split as best_split, train_cost as train_cost
    from lowrank.layers.tensor.tucker import Tucker as Tucker, rebuild_costs as rebuild_costs

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "acdc.layer": "ACDC",
        "attention": "ProjectedAttention disable_fused_encoders project_attention",
        "base_layer": "SeparableConv2d StructuredMap checkpoint_rebuild relative_error",
        "base_method": "ConvShape Method Pair",
        "batched_rebuild": "BatchedRebuild",
        "bayesian.layers": "VariationalConv2d VariationalLayer VariationalLinear WeightNoise posterior_parameters "
        "variational_layers",
        "bayesian.method": "Bayesian",
        "bayesian.priors": "GroupScales HorseshoeScales NormalJeffreysScales",
        "blocks.hashed": "Hashed HashedBoth HashedFull",
        "blocks.monarch": "Monarch",
        "blocks.shuffle": "Shuffle",
        "dense": "Dense Separable",
        "factored": "FactoredMap",
        "linear": "StructuredLinear as_linear build_linear",
        "low_rank.bottleneck": "Bottleneck",
        "low_rank.cp_kernel": "CPKernel",
        "low_rank.spatial_svd": "SpatialSVD",
        "low_rank.svd": "SVD",
        "low_rank.tensor_train_kernel": "TensorTrainKernel",
        "low_rank.tied_bottleneck": "TiedBottleneck",
        "low_rank.tucker2": "Tucker2 leading_columns",
        "low_rank.whole_kernel": "Decomposition KernelChain WholeKernelMethod chain_product",
        "registry": "METHODS VARIATIONAL_METHODS make_method method_class",
        "tensor.cp": "CP",
        "tensor.tensor_train": "TensorTrain",
        "tensor.tensor_train_ops": "best_split train_cost",
        "tensor.tucker": "Tucker rebuild_costs",
    },
)
