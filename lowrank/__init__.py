"""Structured linear maps for torch networks: layers, exact counts, budgets, substitution, training and export.

Entry points: `lowrank.compression` counts and substitutes, `lowrank.training` trains, `lowrank.io` reads and writes
models; `python -m lowrank.count` prints the sizes of a network.
`import lowrank` loads no torch. Must not import `sweeps` or `analysis`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.compression.budget import Budget as Budget, solve as solve
    from lowrank.compression.inspection.counting_rules import register_counting_rule as register_counting_rule
    from lowrank.compression.inspection.plain_layers import register_equivalent as register_equivalent
    from lowrank.compression.merging import merge as merge
    from lowrank.compression.substitution import SubstitutionReport as SubstitutionReport, substitute as substitute
    from lowrank.compression.trace import network_plan as network_plan, trace_plan as trace_plan
    from lowrank.data.dataset import load_data as load_data
    from lowrank.data.settings import DataSettings as DataSettings
    from lowrank.deployment.compressor import (
        Compressed as Compressed,
        Compressor as Compressor,
        compress_network as compress_network,
    )
    from lowrank.io.model_file import load_model as load_model, save_model as save_model
    from lowrank.layers.acdc.layer import ACDC as ACDC
    from lowrank.layers.blocks.hashed import Hashed as Hashed, HashedBoth as HashedBoth, HashedFull as HashedFull
    from lowrank.layers.blocks.monarch import Monarch as Monarch
    from lowrank.layers.blocks.shuffle import Shuffle as Shuffle
    from lowrank.layers.dense import Dense as Dense, Separable as Separable
    from lowrank.layers.low_rank.bottleneck import Bottleneck as Bottleneck
    from lowrank.layers.low_rank.cp_kernel import CPKernel as CPKernel
    from lowrank.layers.low_rank.spatial_svd import SpatialSVD as SpatialSVD
    from lowrank.layers.low_rank.svd import SVD as SVD
    from lowrank.layers.low_rank.tensor_train_kernel import TensorTrainKernel as TensorTrainKernel
    from lowrank.layers.low_rank.tied_bottleneck import TiedBottleneck as TiedBottleneck
    from lowrank.layers.low_rank.tucker2 import Tucker2 as Tucker2
    from lowrank.layers.registry import make_method as make_method
    from lowrank.layers.tensor.cp import CP as CP
    from lowrank.layers.tensor.tensor_train import TensorTrain as TensorTrain
    from lowrank.layers.tensor.tucker import Tucker as Tucker
    from lowrank.networks.registry import NetworkSettings as NetworkSettings, make_network as make_network
    from lowrank.training.recipe import Recipe as Recipe
    from lowrank.training.trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compression.budget": "Budget solve",
        "compression.inspection.counting_rules": "register_counting_rule",
        "compression.inspection.plain_layers": "register_equivalent",
        "compression.merging": "merge",
        "compression.substitution": "SubstitutionReport substitute",
        "compression.trace": "network_plan trace_plan",
        "data.dataset": "load_data",
        "data.settings": "DataSettings",
        "deployment.compressor": "Compressed Compressor compress_network",
        "io.model_file": "load_model save_model",
        "layers.acdc.layer": "ACDC",
        "layers.blocks.hashed": "Hashed HashedBoth HashedFull",
        "layers.blocks.monarch": "Monarch",
        "layers.blocks.shuffle": "Shuffle",
        "layers.dense": "Dense Separable",
        "layers.low_rank.bottleneck": "Bottleneck",
        "layers.low_rank.cp_kernel": "CPKernel",
        "layers.low_rank.spatial_svd": "SpatialSVD",
        "layers.low_rank.svd": "SVD",
        "layers.low_rank.tensor_train_kernel": "TensorTrainKernel",
        "layers.low_rank.tied_bottleneck": "TiedBottleneck",
        "layers.low_rank.tucker2": "Tucker2",
        "layers.registry": "make_method",
        "layers.tensor.cp": "CP",
        "layers.tensor.tensor_train": "TensorTrain",
        "layers.tensor.tucker": "Tucker",
        "networks.registry": "NetworkSettings make_network",
        "training.recipe": "Recipe",
        "training.trainer": "Trainer",
    },
)
