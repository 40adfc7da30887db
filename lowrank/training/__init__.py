"""Training of one network: recipes, optimizer, objective, metrics and the loop around them.

Entry point: `lowrank.training.trainer.Trainer`, made from a network, an image data set and a `Recipe`. `engine` holds
what runs a single step: plain, as a CUDA graph, compiled, or in several processes. Nothing here imports
lowrank.deployment or a command, and nothing knows of Ray, Optuna or MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.utils.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lowrank.training.bayesian import (
        RemovedNetwork as RemovedNetwork,
        compress_posterior as compress_posterior,
        mixed_precision_error as mixed_precision_error,
        remove_groups as remove_groups,
    )
    from lowrank.training.divergence import DivergedError as DivergedError
    from lowrank.training.engine.compiler_import import begin_compiler_import as begin_compiler_import
    from lowrank.training.engine.data_parallel import DataParallelGroup as DataParallelGroup
    from lowrank.training.engine.device_memory import free_memory as free_memory
    from lowrank.training.engine.memory_probe import (
        MakeTrainer as MakeTrainer,
        measure_step as measure_step,
        probe_memory as probe_memory,
    )
    from lowrank.training.engine.precision import (
        number_format as number_format,
        use_channels_last as use_channels_last,
    )
    from lowrank.training.objective import split_output as split_output
    from lowrank.training.optimizer import check_network as check_network
    from lowrank.training.recipe import Recipe as Recipe
    from lowrank.training.recipes import (
        RECIPE_FIELD as RECIPE_FIELD,
        augmentation_for as augmentation_for,
        default_recipe as default_recipe,
        recipe_fields as recipe_fields,
    )
    from lowrank.training.trainer import Trainer as Trainer, recorded_names as recorded_names
    from lowrank.training.training_check import check_training_step as check_training_step
    from lowrank.training.variational import SGD_NOTICE as SGD_NOTICE, VariationalTraining as VariationalTraining

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "bayesian": "RemovedNetwork compress_posterior mixed_precision_error remove_groups",
        "divergence": "DivergedError",
        "engine.compiler_import": "begin_compiler_import",
        "engine.data_parallel": "DataParallelGroup",
        "engine.device_memory": "free_memory",
        "engine.memory_probe": "MakeTrainer measure_step probe_memory",
        "engine.precision": "number_format use_channels_last",
        "objective": "split_output",
        "optimizer": "check_network",
        "recipe": "Recipe",
        "recipes": "RECIPE_FIELD augmentation_for default_recipe recipe_fields",
        "trainer": "Trainer recorded_names",
        "training_check": "check_training_step",
        "variational": "SGD_NOTICE VariationalTraining",
    },
)
