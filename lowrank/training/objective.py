"""The training objective: the parts of the loss that a recipe asks for, and their weighted sum.

loss = (1 - kd_weight) * cross-entropy + kd_weight * distillation + attention_weight * attention transfer
+ auxiliary_weight * the auxiliary head's cross-entropy. Every part is a batch mean, float32, minimised. Variational
layers add their divergence over the number of training examples (lowrank.training.variational).
Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.distillation import BatchSignals, Signals, Taps, Teacher, attention_loss, default_taps, distillation_loss
from lowrank.errors import InputError
from lowrank.layers import BatchedRebuild
from lowrank.training.recipe import Recipe
from lowrank.training.variational import VariationalTraining

CROSS_ENTROPY, KD, ATTENTION = "loss_cross_entropy", "loss_kd", "loss_attention"
AUXILIARY_LOSS, KL = "loss_auxiliary", "loss_kl"


class Forward(Protocol):
    """The signature of `Objective.__call__` and of its compiled form."""

    def __call__(
        self, images: Tensor, labels: Tensor, signals: Signals | None,
        autocast: Callable[[], AbstractContextManager[Any]] = ...,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Logits (B, K), the loss to minimise, and its parts."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss as a function of the outputs of a network and its teacher."""

    label_smoothing: float
    kd_weight: float
    kd_temperature: float
    attention_weight: float
    auxiliary_weight: float

    @classmethod
    def of(cls, recipe: Recipe) -> Loss:
        """Take the loss's fields from a recipe."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})

    @property
    def names(self) -> tuple[str, ...]:
        """The parts in their order, unweighted, under the names that the records use."""
        used = {CROSS_ENTROPY: True, KD: self.kd_weight > 0, ATTENTION: self.attention_weight > 0,
                AUXILIARY_LOSS: self.auxiliary_weight > 0}  # fmt: skip
        return tuple(name for name, is_used in used.items() if is_used)

    def __call__(
        self, output: Tensor | tuple[Tensor, Tensor], labels: Tensor, signals: Signals | None, maps: Sequence[Tensor],
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Compute the loss of a batch.

        Args:
            output: logits (B, K), or those and the auxiliary head's.
            labels: int64 (B,).
            signals: the teacher's; without them its parts are left out.
            maps: the student's attention maps, one for each tap.
            class_weights: (K,), what the cross-entropy of an image is multiplied by, by its class; None for 1.

        Returns:
            Logits (B, K), the loss to minimise, and its parts in the order of `names`.
        """
        logits, second = split_output(output)
        parts = {CROSS_ENTROPY: self._cross_entropy(logits, labels, class_weights)}
        if signals is not None and self.kd_weight > 0:
            parts[KD] = distillation_loss(logits, signals.logits, self.kd_temperature)
        if signals is not None and self.attention_weight > 0:
            parts[ATTENTION] = attention_loss(maps, signals.maps)
        if second is not None and self.auxiliary_weight > 0:
            parts[AUXILIARY_LOSS] = self._cross_entropy(second, labels, class_weights)
        return logits, self._sum(parts), tuple(parts.values())

    def _cross_entropy(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
        if class_weights is None:
            return functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        losses = functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.label_smoothing, reduction="none"
        )
        return (losses * class_weights[labels]).mean()  # over images, so that parts of a batch add up

    def _sum(self, parts: dict[str, Tensor]) -> Tensor:
        loss = parts[CROSS_ENTROPY] if KD not in parts else (1 - self.kd_weight) * parts[CROSS_ENTROPY]
        weights = {KD: self.kd_weight, ATTENTION: self.attention_weight, AUXILIARY_LOSS: self.auxiliary_weight}
        for name, weight in weights.items():
            if name in parts:
                loss = loss + weight * parts[name]
        return loss


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """Return the weights by which each class counts alike in a mean over images.

    Args:
        class_counts: images of each class.

    Returns:
        float32 (K,), inverse to the counts, with mean 1 over the images; 0 for a class without images.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    weights = counts.sum() / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, weights, 0).float()


def split_output(output: Any) -> tuple[Any, Any]:
    """Split what a network returns in training mode.

    Args:
        output: logits (B, K), or a tuple or list of these and the logits of auxiliary heads.

    Returns:
        The logits, and those of the first auxiliary head; None where there is none. Others are ignored.
    """
    if isinstance(output, tuple | list):
        return output[0], output[1] if len(output) > 1 else None
    return output, None


class Objective:
    """The forward pass and training loss of one network under one recipe.

    Attributes:
        names: the parts of the loss, unweighted, under the names that the records use.
        taps: collect attention maps while the network runs; None where the loss needs none.
        class_weights: (K,), on the network's device; None where all classes weigh 1.
        variational: of a network with variational layers; None for others.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, teacher: Teacher | None = None, taps: Sequence[str] = (),
        class_counts: Sequence[int] = (), variational: VariationalTraining | None = None,
    ):  # fmt: skip
        """Take what the recipe needs.

        Args:
            network: on its device.
            recipe: weights the parts of the loss.
            teacher: needed if the recipe weights its signals.
            taps: names of the modules whose attention maps are compared; without them the ends of the stages.
            class_counts: training images of each class; needed for the recipe's `class_weights: balanced`.
            variational: adds the divergence of variational layers to the loss; None for a network without them.

        Raises:
            InputError: the recipe weights a teacher's signals and there is no teacher, or no module to tap.
        """
        if recipe.needs_teacher and teacher is None:
            raise InputError("`kd_weight` and `attention_weight` above 0 need a teacher, but there is none")
        self.network, self.recipe = network, recipe
        device = next(network.parameters()).device
        on_gpu = device.type == "cuda"
        balanced = recipe.class_weights == "balanced"
        self.class_weights = balanced_weights(class_counts).to(device) if balanced else None
        rebuild = BatchedRebuild(network) if on_gpu and not recipe.rebuild_checkpoint else None
        self.rebuild = rebuild if rebuild is not None and rebuild.maps else None
        self.teacher = teacher if recipe.needs_teacher else None
        attends = recipe.attention_weight > 0
        self.taps = Taps(network, tuple(taps) or default_taps(network)) if attends else None
        self.loss = Loss.of(recipe)
        self.variational = variational
        self.names = self.loss.names if variational is None else (*self.loss.names, KL)

    def teacher_signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> BatchSignals | None:
        """Get what the teacher says about a batch.

        Args:
            images: augmented, (B, C, H, W).
            indices: global indices of the images, (B,).
            cache_epoch: the number that the augmentations were drawn with.

        Returns:
            Its logits and attention maps; None without a teacher.
        """
        return None if self.teacher is None else self.teacher.signals(images, indices, cache_epoch)

    def rebuilt_weights(self) -> AbstractContextManager[Any]:
        """Make all maps use weights that are rebuilt together now, inside `with`.

        On a CPU nothing is done. On a GPU launching many small kernels would cost more than their work.

        Returns:
            A context manager.
        """
        return self.rebuild.use_rebuilt_weights() if self.rebuild is not None else nullcontext()

    def __call__(
        self, images: Tensor, labels: Tensor, signals: Signals | None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Run the network on a batch and compute the loss.

        Args:
            images: augmented, (B, C, H, W).
            labels: int64 (B,).
            signals: from `teacher_signals`.
            autocast: the precision in which the network runs.

        Returns:
            Logits (B, K), the loss to minimise, and its parts in the order of `names`.
        """
        with self.taps or nullcontext(), autocast(), self.rebuilt_weights():
            output = self.network(images)
        maps = self.taps.take() if self.taps is not None else ()
        logits, loss, parts = self.loss(output, labels, signals, maps, self.class_weights)
        if self.variational is None:
            return logits, loss, parts
        weighted, kl = self.variational.loss()
        return logits, loss + weighted, (*parts, kl)
