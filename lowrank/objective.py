"""What a network is trained on: the parts of the loss that a recipe asks for, and their sum.

loss = (1 - kd_weight) * cross-entropy + kd_weight * distillation + attention_weight * attention transfer. Every part is
a batch mean, float32, minimised. Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.distill import Signals, Taps, Teacher, default_taps
from lowrank.errors import InputError
from lowrank.losses import attention_loss, distillation_loss
from lowrank.recipes import Recipe

CROSS_ENTROPY, KD, ATTENTION = "loss_cross_entropy", "loss_kd", "loss_attention"


class Objective:
    """The training loss of one network under one recipe; `names` are its parts, unweighted, as the records call them.

    Raises InputError when the recipe asks a teacher and there is none, and for taps that the network does not have.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, teacher: Teacher | None = None, taps: Sequence[str] = ()):
        if recipe.needs_teacher and teacher is None:
            raise InputError("`kd_weight` and `attention_weight` above 0 need a teacher, but there is none")
        self.network, self.recipe = network, recipe
        self.teacher = teacher if recipe.needs_teacher else None
        attends = recipe.attention_weight > 0
        self.taps = Taps(network, tuple(taps) or default_taps(network)) if attends else None
        wanted = {CROSS_ENTROPY: True, KD: recipe.kd_weight > 0, ATTENTION: attends}
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
            logits = self.network(images)
        cross_entropy = functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        if signals is None:
            return logits, cross_entropy, (cross_entropy,)
        return logits, *self._with_teacher(cross_entropy, logits, signals)

    def _with_teacher(
        self, cross_entropy: Tensor, logits: Tensor, signals: Signals
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        parts, loss = [cross_entropy], (1 - self.recipe.kd_weight) * cross_entropy
        if self.recipe.kd_weight > 0:
            parts.append(distillation_loss(logits, signals.logits, self.recipe.kd_temperature))
            loss = loss + self.recipe.kd_weight * parts[-1]
        if self.taps is not None:
            parts.append(attention_loss(self.taps.take(), signals.maps))
            loss = loss + self.recipe.attention_weight * parts[-1]
        return loss, tuple(parts)


def means(losses: Tensor, parts: Tensor, sizes: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Means over samples of the loss (steps,) and of its parts (steps, parts), from batches of `sizes` (steps,)."""
    table = torch.cat([losses[:, None], parts], dim=1).double()
    found = (table * sizes[:, None]).sum(0) / sizes.sum()
    return dict(zip(("train_loss", *names), found.tolist(), strict=True))
