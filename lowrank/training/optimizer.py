"""The optimizer of a network: who is trained at all, at which share of the rate, with which decay.

Parameters are of three kinds: the head (the last layer with as many outputs as there are classes, and an auxiliary
head), factors of structured maps, and the body, which is all else. Each kind has its own multiplier of the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lowrank.compression.substitution import AUXILIARY, factor_parameters
from lowrank.errors import InputError, unknown
from lowrank.training.recipe import Recipe
from lowrank.training.weight_decay import factor_decays

LR_MULTIPLIER = "lr_multiplier"  # the key under which a group keeps its multiplier
_NORMS = (nn.modules.batchnorm._NormBase,)  # every batch norm and instance norm


def frozen_modules(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Every module whose name matches a shell-style pattern, and all inside; each once.

    Raises InputError for a pattern without a match, and when nothing is left to train.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    found: dict[int, nn.Module] = {}
    for pattern in patterns:
        matching = [module for name, module in modules.items() if fnmatchcase(name, pattern)]
        if not matching:
            raise unknown("module in `freeze`", pattern, [name for name in modules if "." not in name])
        found.update({id(part): part for module in matching for part in module.modules()})
    held = {id(parameter) for part in found.values() for parameter in part.parameters(recurse=False)}
    if patterns and held >= {id(parameter) for parameter in network.parameters()}:
        raise InputError(f"`freeze` leaves nothing to train: {', '.join(patterns)}")
    return list(found.values())


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Stop training, in place, of `frozen_modules`; raises InputError as that does.

    Returns the norms among them, which must stay in evaluation mode so that their statistics stay too.
    """
    modules = frozen_modules(network, patterns)
    for module in modules:
        module.requires_grad_(False)
    return [module for module in modules if isinstance(module, _NORMS)]


def check_network(network: nn.Module, recipe: Recipe, classes: int) -> None:
    """Raises InputError when the recipe asks for a part that the network does not have."""
    frozen_modules(network, recipe.freeze)
    lr_multipliers(network, recipe, classes)
    if recipe.drop_path > 0 and not hasattr(network, "set_drop_path"):
        raise InputError(f"`drop_path` needs a network with paths to drop; {type(network).__name__} has none")
    if recipe.auxiliary_weight > 0 and getattr(network, AUXILIARY, None) is None:
        raise InputError(f"`auxiliary_weight` needs an auxiliary head; this {type(network).__name__} has none")


def head_names(network: nn.Module, classes: int) -> tuple[str, ...]:
    """Names of the last layer with `classes` outputs and of an auxiliary head; raises InputError without the first."""
    names = [
        name
        for name, module in network.named_modules()
        if classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
        and not name.startswith(f"{AUXILIARY}.")
    ]
    if not names:
        raise InputError(
            f"`factor_lr`, `body_lr` and `head_lr` tell the head by its {classes} outputs, but "
            f"{type(network).__name__} has no such layer"
        )
    head = next(name for name in names if name == names[-1] or names[-1].startswith(f"{name}."))  # the outermost
    return (head, AUXILIARY) if getattr(network, AUXILIARY, None) is not None else (head,)


def lr_multipliers(network: nn.Module, recipe: Recipe, classes: int | None = None) -> dict[int, float]:
    """The multiplier of the rate of each parameter, by its id; `classes` is needed where one is not 1."""
    shares = {id(parameter): recipe.body_lr for parameter in network.parameters()}
    shares.update({id(factor): recipe.factor_lr for factor in factor_parameters(network)})
    if any(share != 1 for share in (recipe.factor_lr, recipe.body_lr, recipe.head_lr)):
        for name in head_names(network, classes or 0):
            shares.update({id(parameter): recipe.head_lr for parameter in network.get_submodule(name).parameters()})
    return shares


def parameter_groups(
    network: nn.Module, recipe: Recipe, decay_ratio: float, classes: int | None = None
) -> list[dict[str, Any]]:
    """Groups for the optimizer: first all that is no factor, then factors, one group for each decay and rate.

    `decay_ratio` is K / N: parameters of the network over those of the one that it replaces; with the scope "layer"
    each layer has its own instead. Frobenius decay gives factors no decay here: see lowrank.training.weight_decay.
    What is frozen is in no group. Raises InputError when the head has a rate of its own and cannot be told.
    """
    decays, shares = factor_decays(network, recipe, decay_ratio), lr_multipliers(network, recipe, classes)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in (parameter for parameter in network.parameters() if parameter.requires_grad):
        is_factor = id(parameter) in decays
        key = (is_factor, decays.get(id(parameter), recipe.weight_decay), shares[id(parameter)])
        groups.setdefault(key, []).append(parameter)
    ordered = sorted(groups, key=lambda key: key[0])  # stable: in order of appearance among themselves
    return [{"params": groups[key], "weight_decay": key[1], LR_MULTIPLIER: key[2]} for key in ordered]


def make_optimizer(
    network: nn.Module, recipe: Recipe, decay_ratio: float, classes: int, *, skips: bool
) -> torch.optim.SGD:
    """SGD over `parameter_groups`.

    With `skips` (float16, whose first steps overflow) momentum starts as zeros: a skipped first step would otherwise
    leave it as whatever lay in memory, with the same result where no step is skipped.
    """
    optimizer = torch.optim.SGD(
        parameter_groups(network, recipe, decay_ratio, classes), lr=recipe.lr, momentum=recipe.momentum,
        nesterov=recipe.nesterov, fused=True,
    )  # fmt: skip
    if skips and recipe.momentum > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter]["momentum_buffer"] = buffer
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[LR_MULTIPLIER]
