"""What follows the training of variational layers: groups are removed by a budget, and the rest is fine-tuned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression import (
    BitWidth,
    Budget,
    RemovedSizes,
    Remover,
    even_share,
    file_bytes,
    groups_below,
    mixed_bytes,
    reestimate_batch_norms,
    round_significand,
    solve_threshold,
)
from lowrank.data import AugmentationSettings
from lowrank.distillation import LiveTeacher, Teacher
from lowrank.layers import Bayesian
from lowrank.networks import NetworkSettings, copy_network
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer

STATISTICS_IMAGES = 8192  # over which batch norms are estimated again: they have seen noisy activations


@dataclass(frozen=True, kw_only=True)
class RemovedNetwork:
    """A plain network that is left of a variational one.

    Attributes:
        network: on the device of the training, in evaluation mode.
        settings: of the plain network, with the channels that are left.
        threshold: score above which groups were removed; infinity if none was.
        counts: params, mult_adds and bytes of the network, and mixed_bytes of its weights in mixed precision.
        alive: groups that stay by layer, and how many there were.
        widths: bits of the weights by layer.
        is_masked: whether groups are only masked.
    """

    network: nn.Module
    settings: NetworkSettings
    threshold: float
    counts: dict[str, int]
    alive: dict[str, tuple[int, int]]
    widths: dict[str, BitWidth]
    is_masked: bool

    def record(self) -> dict[str, Any]:
        """Return plain data: what it takes to build the network, and what it looks like."""
        return {
            "network": self.settings.model_dump(mode="json"), "threshold": min(self.threshold, 1e30),
            "counts": self.counts, "alive": {name: list(counts) for name, counts in self.alive.items()},
            "bits": {name: width.bits for name, width in self.widths.items()}, "masked": self.is_masked,
        }  # fmt: skip


def remove_groups(trainer: Trainer, budget: Budget | None) -> RemovedNetwork:
    """Remove groups of a trained variational network.

    The batch norms of what is left are estimated again.

    The trainer is not changed, so that each of several budgets can be met from the same training.

    Args:
        trainer: of a network with variational layers.
        budget: upper limits of the network; None takes the threshold of the method's settings.

    Returns:
        The network within the budget that has lost the fewest groups, where each layer keeps at least `min_groups` of
        those that it would keep if all layers lost equally many.

    Raises:
        InfeasibleError: even one group in each layer exceeds the budget.
        InputError: the budget limits what masking does not change.
    """
    assert trainer.variational is not None
    settings = trainer.variational.settings
    shape = (trainer.data.image_shape, len(trainer.data.classes))
    with trainer.step.ema.swapped_in() if trainer.step.ema is not None else nullcontext():
        even = 0.0 if budget is None else even_share(trainer.network, settings.network, *shape, budget)
        remover = Remover(trainer.network, settings.network, min_share=settings.method.min_groups * even)
        sizes = RemovedSizes(remover, *shape)
        threshold = settings.method.threshold if budget is None else solve_threshold(remover, sizes, budget)
        network = reestimate_batch_norms(remover.removed(threshold, *shape), lambda: statistics_batches(trainer))
        widths = remover.bit_widths(threshold)
        remaining = remover.settings_at(threshold)
        masks = groups_below(remover.scores, threshold)
    counts = sizes.counts(threshold) | {"bytes": file_bytes(remaining, *shape)}
    return RemovedNetwork(
        network=network, settings=remaining, threshold=threshold,
        counts=counts | {"mixed_bytes": mixed_bytes(network, widths)},
        alive={name: (int(mask.sum()), len(mask)) for name, mask in masks.items()}, widths=widths,
        is_masked=remover.is_masked,
    )  # fmt: skip


def statistics_batches(trainer: Trainer) -> Iterator[Tensor]:
    """Give the images over which batch norms are estimated again: training images of the next epoch.

    Args:
        trainer: has the images.

    Yields:
        Images (B, C, H, W), STATISTICS_IMAGES of them in all, or a whole epoch where that has fewer.
    """
    batches = -(-STATISTICS_IMAGES // trainer.recipe.batch_size)
    for images, *_ in itertools.islice(trainer.batches(), batches):
        yield images


def finetune_recipe(recipe: Recipe, method: Bayesian) -> Recipe:
    """Return the recipe of the training after the removal.

    Args:
        recipe: of the variational training.
        method: says for how long and how fast.

    Returns:
        The same recipe, shorter, along a cosine without a warm-up, with the method's share of distillation.
    """
    changes = {
        "epochs": method.finetune_epochs, "lr": method.finetune_lr, "schedule": "cosine", "warmup": 0.0,
        "kd_weight": method.finetune_kd_weight, "attention_weight": 0.0,
    }  # fmt: skip
    return recipe.model_copy(update=changes)


def make_plain_trainer(
    trainer: Trainer, removed: RemovedNetwork, augmentation: AugmentationSettings, teacher: Teacher | None = None
) -> Trainer:
    """Make the trainer that evaluates the removed network and fine-tunes it.

    Args:
        trainer: of the variational network.
        removed: from `remove_groups`; its network is trained in place.
        augmentation: of the training images.
        teacher: what the network imitates where the method asks for it; None for the teacher of the training or,
            without one, the network before the removal.

    Returns:
        The trainer, at its first epoch.
    """
    assert trainer.variational is not None
    method = trainer.variational.settings.method
    return Trainer(
        removed.network, trainer.data, finetune_recipe(trainer.recipe, method), augmentation=augmentation,
        order_seed=trainer.order_seed + 1, device=trainer.device, decoders=trainer.decoders,
        teacher=(teacher or _default_teacher(trainer)) if method.finetune_kd_weight > 0 else None,
        cache_epochs=trainer.step.cache_epochs,
    )  # fmt: skip


def _default_teacher(trainer: Trainer) -> Teacher:
    """Return the teacher of the training or, without one, the network before the removal."""
    if trainer.step.objective.teacher is not None:
        return trainer.step.objective.teacher
    with trainer.step.ema.swapped_in() if trainer.step.ema is not None else nullcontext():
        network = copy_network(trainer.network)
    return LiveTeacher(network, (), autocast=trainer.step.dtype)


def freeze_masked(network: nn.Module) -> None:
    """Make training leave masked groups alone, in place: the gradients of their weights and biases become 0.

    Args:
        network: plain; the weights of its masked groups are 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            present = (module.weight != 0).to(module.weight.dtype)
            module.weight.register_hook(lambda gradient, mask=present: gradient * mask)
            if module.bias is not None and isinstance(module, nn.Conv2d):
                rows = present.flatten(1).amax(1)
                module.bias.register_hook(lambda gradient, mask=rows: gradient * mask)


def compress_posterior(
    trainer: Trainer, budget: Budget | None, teacher: Teacher | None = None
) -> tuple[RemovedNetwork, Trainer]:
    """Remove groups by a budget and fine-tune what is left, if the method asks for it.

    Args:
        trainer: of a trained variational network; it is not changed.
        budget: upper limits; None for the method's threshold.
        teacher: see `make_plain_trainer`.

    Returns:
        The removed network, and a trainer with its final weights.

    Raises:
        InfeasibleError: the budget is too small.
        DivergedError: the fine-tuning diverges.
    """
    removed = remove_groups(trainer, budget)
    plain = make_plain_trainer(trainer, removed, trainer.augmentation, teacher)
    if removed.is_masked:
        freeze_masked(plain.network)
    for _ in range(plain.recipe.epochs):
        plain.train_epoch()
    return removed, plain


@torch.no_grad()
def mixed_precision_error(plain: Trainer, widths: dict[str, BitWidth]) -> float:
    """Evaluate a network whose weights are rounded to their significant bits.

    Args:
        plain: has the network; its weights are put back.
        widths: bits by layer.

    Returns:
        The validation error in percent.
    """
    weights = {name: plain.network.get_parameter(f"{name}.weight") for name in widths}
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.copy_(round_significand(before[name], widths[name].significant))
        return plain.evaluate("val")["error"]
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])
