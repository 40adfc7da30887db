"""What a network is trained on: the parts of the loss that a recipe asks for, and their sum.

loss = (1 - kd_weight) * cross-entropy + kd_weight * distillation + attention_weight * attention transfer
+ auxiliary_weight * the auxiliary head's cross-entropy. Every part is a batch mean, float32, minimised.
Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lowrank.distill import Signals, Taps, Teacher, default_taps
from lowrank.errors import InputError
from lowrank.losses import attention_loss, distillation_loss
from lowrank.recipes import Recipe

CROSS_ENTROPY, KD, ATTENTION = "loss_cross_entropy", "loss_kd", "loss_attention"
AUXILIARY_LOSS = "loss_auxiliary"


class Objective:
    """The training loss of one network under one recipe; `names` are its parts, unweighted, as the records call them.

    Raises InputError for what the recipe weighs and is not there: a teacher, taps.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, teacher: Teacher | None = None, taps: Sequence[str] = ()):
        if recipe.needs_teacher and teacher is None:
            raise InputError("`kd_weight` and `attention_weight` above 0 need a teacher, but there is none")
        self.network, self.recipe = network, recipe
        self.teacher = teacher if recipe.needs_teacher else None
        attends = recipe.attention_weight > 0
        self.taps = Taps(network, tuple(taps) or default_taps(network)) if attends else None
        wanted = {CROSS_ENTROPY: True, KD: recipe.kd_weight > 0, ATTENTION: attends,
                  AUXILIARY_LOSS: recipe.auxiliary_weight > 0}  # fmt: skip
        self.names = tuple(name for name, on in wanted.items() if on)

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, slot: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Logits (B, K), the loss to minimise, and its parts in the order of `names`.

        Args:
            images: views (B, C, H, W).
            labels: int64 (B,).
            indices: global indices of the images, int64 (B,).
            slot: what the views were drawn with.
            autocast: the precision in which the network runs.
        """
        signals = None if self.teacher is None else self.teacher.signals(images, indices, slot)
        with self.taps or nullcontext(), autocast():
            output = self.network(images)
        logits, second = output if isinstance(output, tuple) else (output, None)
        parts = {CROSS_ENTROPY: self._cross_entropy(logits, labels)}
        if signals is not None:
            parts |= self._taught(logits, signals)
        if second is not None and self.recipe.auxiliary_weight > 0:
            parts[AUXILIARY_LOSS] = self._cross_entropy(second, labels)
        return logits, self._sum(parts), tuple(parts.values())

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)

    def _taught(self, logits: Tensor, signals: Signals) -> dict[str, Tensor]:
        parts = {}
        if self.recipe.kd_weight > 0:
            parts[KD] = distillation_loss(logits, signals.logits, self.recipe.kd_temperature)
        if self.taps is not None:
            parts[ATTENTION] = attention_loss(self.taps.take(), signals.maps)
        return parts

    def _sum(self, parts: dict[str, Tensor]) -> Tensor:
        loss = parts[CROSS_ENTROPY] if KD not in parts else (1 - self.recipe.kd_weight) * parts[CROSS_ENTROPY]
        weights = {KD: self.recipe.kd_weight, ATTENTION: self.recipe.attention_weight,
                   AUXILIARY_LOSS: self.recipe.auxiliary_weight}  # fmt: skip
        for name, weight in weights.items():
            if name in parts:
                loss = loss + weight * parts[name]
        return loss
