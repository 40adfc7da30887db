"""The optimizer of a network: which parameters are trained, at which learning rate, with which weight decay.

Parameters are of three kinds: the head (of the layers with as many outputs as there are classes that which runs last,
and an auxiliary head if there is one), the factors of structured layers, and the body, which is everything else. The
recipe has one multiplier of the learning rate for each kind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lowrank.compression import AUXILIARY, factor_parameters, run_order
from lowrank.errors import InputError, unknown
from lowrank.layers import posterior_parameters
from lowrank.networks import ImageShape
from lowrank.training.recipe import Recipe
from lowrank.training.weight_decay import factor_decays
from lowrank.utils import modules_with_hooks

LR_MULTIPLIER = "lr_multiplier"  # key of the multiplier in a parameter group
_NORM_CLASSES = (nn.modules.batchnorm._NormBase,)  # the norms with running statistics: batch and instance norms


def frozen_modules(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Find the modules whose names match a shell-style pattern, and all modules inside them.

    Args:
        network: the network; it is not changed.
        patterns: such as "stage1.*".

    Returns:
        Each module once.

    Raises:
        InputError: a pattern matches nothing, or no parameter would be trained.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    frozen: dict[int, nn.Module] = {}
    for pattern in patterns:
        matching = [module for name, module in modules.items() if fnmatchcase(name, pattern)]
        if not matching:
            raise unknown("module in `freeze`", pattern, [name for name in modules if "." not in name])
        frozen.update({id(part): part for module in matching for part in module.modules()})
    frozen_parameters = {id(parameter) for part in frozen.values() for parameter in part.parameters(recurse=False)}
    if patterns and frozen_parameters >= {id(parameter) for parameter in network.parameters()}:
        raise InputError(f"`freeze` leaves nothing to train: {', '.join(patterns)}")
    return list(frozen.values())


def freeze(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Exclude `frozen_modules` from training, in place.

    Args:
        network: its parameters' `requires_grad` is changed.
        patterns: shell-style patterns of module names.

    Returns:
        The batch and instance norms among the modules. They must stay in evaluation mode, so that their statistics do
        not change either.

    Raises:
        InputError: a pattern matches nothing, or no parameter would be trained.
    """
    modules = frozen_modules(network, patterns)
    for module in modules:
        module.requires_grad_(False)
    return [module for module in modules if isinstance(module, _NORM_CLASSES)]


def check_network(network: nn.Module, recipe: Recipe, classes: int, image_shape: ImageShape) -> tuple[str, ...]:
    """Check that the network has every part that the recipe needs.

    Args:
        network: the network; it is not changed.
        recipe: how the network is to be trained.
        classes: number of classes.
        image_shape: (C, H, W) of the images.

    Returns:
        The head, as `head_of`.

    Raises:
        InputError: the network has no module that `freeze` names, no layer that could be the head, no paths to drop, or
            no auxiliary head, although the recipe needs it; or no parameter is trained.
    """
    frozen_modules(network, recipe.freeze)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"all parameters of {type(network).__name__} are frozen: nothing is left to train")
    head = head_of(network, recipe, classes, image_shape)
    if recipe.drop_path > 0 and not hasattr(network, "set_drop_path"):
        raise InputError(f"`drop_path` needs a network with paths to drop; {type(network).__name__} has none")
    if recipe.auxiliary_weight > 0 and getattr(network, AUXILIARY, None) is None:
        raise InputError(f"`auxiliary_weight` needs an auxiliary head; this {type(network).__name__} has none")
    return head


def head_names(network: nn.Module, classes: int, image_shape: ImageShape) -> tuple[str, ...]:
    """Find the names of the layers that compute the logits.

    Args:
        network: runs once on a zero image; it is not changed.
        classes: number of classes.
        image_shape: (C, H, W) of the image.

    Returns:
        Of the layers with `classes` outputs that one which runs last and, if there is one, the auxiliary head.

    Raises:
        InputError: no layer with `classes` outputs runs, or the network does not take such images.
    """
    candidates = [
        name
        for name, module in modules_with_hooks(network)
        if classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    # A structured layer and the module inside it have the same number of outputs: the outer one ends last
    order = run_order(network, image_shape, candidates)
    if not order:
        raise InputError(
            f"`factor_lr`, `body_lr` and `head_lr` need a head, a layer with {classes} outputs, but "
            f"{type(network).__name__} has no such layer"
        )
    return (order[-1], AUXILIARY) if getattr(network, AUXILIARY, None) is not None else (order[-1],)


def head_of(network: nn.Module, recipe: Recipe, classes: int, image_shape: ImageShape) -> tuple[str, ...]:
    """Find the head where a recipe treats it apart.

    Args:
        network: see `head_names`.
        recipe: has the multipliers of factors, body and head.
        classes: number of classes.
        image_shape: (C, H, W).

    Returns:
        As `head_names`; empty if all multipliers are 1.

    Raises:
        InputError: a multiplier is not 1 and there is no head.
    """
    if all(multiplier == 1 for multiplier in (recipe.factor_lr, recipe.body_lr, recipe.head_lr)):
        return ()
    return head_names(network, classes, image_shape)


def lr_multipliers(network: nn.Module, recipe: Recipe, head: Sequence[str] = ()) -> dict[int, float]:
    """Compute each parameter's multiplier of the learning rate.

    Args:
        network: the network; it is not changed.
        recipe: has the multipliers of factors, body and head.
        head: names of the modules that compute the logits, from `head_of`.

    Returns:
        Multipliers by `id(parameter)`.
    """
    multipliers = {id(parameter): recipe.body_lr for parameter in network.parameters()}
    multipliers.update({id(factor): recipe.factor_lr for factor in factor_parameters(network)})
    for name in head:
        multipliers.update({id(parameter): recipe.head_lr for parameter in network.get_submodule(name).parameters()})
    multipliers.update({id(parameter): recipe.factor_lr for parameter in posterior_parameters(network, means=False)})
    return multipliers


def parameter_groups(
    network: nn.Module, recipe: Recipe, decay_ratio: float, head: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Group the trained parameters by weight decay and learning rate.

    Args:
        network: the network; it is not changed.
        recipe: has the decays and multipliers.
        decay_ratio: parameters of this network over those of the network that it replaces (K / N in the formula of
            lowrank.training.weight_decay). With the decay scope "layer" it is ignored: each layer has its own ratio.
        head: names of the modules that compute the logits, from `head_of`.

    Returns:
        First the groups without factors, then those of factors. Frobenius decay gives factors no decay here: see
        lowrank.training.weight_decay. Frozen parameters are in no group.
    """
    decays, multipliers = factor_decays(network, recipe, decay_ratio), lr_multipliers(network, recipe, head)
    unregularised = {id(parameter) for parameter in posterior_parameters(network, means=True)}  # they have priors
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in (parameter for parameter in network.parameters() if parameter.requires_grad):
        is_factor = id(parameter) in decays
        decay = 0.0 if id(parameter) in unregularised else decays.get(id(parameter), recipe.weight_decay)
        key = (is_factor, decay, multipliers[id(parameter)])
        groups.setdefault(key, []).append(parameter)
    ordered = sorted(groups, key=lambda key: key[0])  # factors last; the stable sort keeps the order otherwise
    return [{"params": groups[key], "weight_decay": key[1], LR_MULTIPLIER: key[2]} for key in ordered]


def make_optimizer(
    network: nn.Module, recipe: Recipe, decay_ratio: float, head: Sequence[str], *, may_skip_steps: bool
) -> torch.optim.Optimizer:
    """Make the optimizer of a network.

    Args:
        network: on its device, with frozen parameters excluded from training.
        recipe: has the kind, the learning rate, momentum and decays. AdamW takes a decay off the weights themselves, so
            there it is no part of the gradient; each group's decay is the same number.
        decay_ratio: see `parameter_groups`.
        head: names of the modules that compute the logits, from `head_of`.
        may_skip_steps: whether steps may be skipped (float16, whose first steps overflow). Momentum then starts as
            zeros: a skipped first step would otherwise leave it uninitialised. The result is the same where no step is
            skipped.

    Returns:
        A fused SGD or AdamW over `parameter_groups`.
    """
    groups = parameter_groups(network, recipe, decay_ratio, head)
    _spare_compiler()
    if recipe.optimizer == "adamw":
        return _make_adamw(groups, recipe)
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    if may_skip_steps and recipe.momentum > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter]["momentum_buffer"] = buffer
    return optimizer


def _spare_compiler() -> None:
    """Keep torch from importing its compiler when an optimizer is made.

    Torch imports it, which takes a second, only to leave `add_param_group` out of what is compiled. A trainer that only
    evaluates needs none; the first step imports it.
    """
    add = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    if add is not None and "torch._dynamo" not in sys.modules:
        add.__dynamo_disable = add


def _make_adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW whose slots exist from the start: a recorded step cannot tell the first step from later ones."""
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    optimizer = torch.optim.AdamW(
        groups, lr=recipe.lr, betas=(recipe.momentum, recipe.square_momentum), fused=True, capturable=on_gpu
    )
    for group in groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group.

    Args:
        optimizer: from `make_optimizer`.
        rate: the recipe's current learning rate; each group multiplies it by its own multiplier.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group[LR_MULTIPLIER]
