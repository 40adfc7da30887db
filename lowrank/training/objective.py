"""What a network is trained on: the parts of the loss that a recipe asks for, and their sum.

loss = (1 - kd_weight) * cross-entropy + kd_weight * distillation + attention_weight * attention transfer
+ auxiliary_weight * the auxiliary head's cross-entropy. Every part is a batch mean, float32, minimised.
Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

from lowrank.distillation.losses import attention_loss, distillation_loss
from lowrank.distillation.teacher import Signals, Taps, Teacher, default_taps
from lowrank.errors import InputError
from lowrank.layers.batched_rebuild import BatchedRebuild
from lowrank.training.recipe import Recipe

CROSS_ENTROPY, KD, ATTENTION = "loss_cross_entropy", "loss_kd", "loss_attention"
AUXILIARY_LOSS = "loss_auxiliary"


class Forward(Protocol):
    """A forward pass with its loss, as `Objective` runs it."""

    def __call__(
        self, images: Tensor, labels: Tensor, signals: Signals | None,
        autocast: Callable[[], AbstractContextManager[Any]] = ...,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Logits (B, K), the loss to minimise, and its parts."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The parts of a loss and their weights, by themselves: functions of what a network and its teacher say."""

    label_smoothing: float
    kd_weight: float
    kd_temperature: float
    attention_weight: float
    auxiliary_weight: float

    @classmethod
    def of(cls, recipe: Recipe) -> Loss:
        """The loss that a recipe asks for."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})

    @property
    def names(self) -> tuple[str, ...]:
        """The parts in their order, unweighted, as the records call them."""
        wanted = {CROSS_ENTROPY: True, KD: self.kd_weight > 0, ATTENTION: self.attention_weight > 0,
                  AUXILIARY_LOSS: self.auxiliary_weight > 0}  # fmt: skip
        return tuple(name for name, on in wanted.items() if on)

    def __call__(
        self, output: Tensor | tuple[Tensor, Tensor], labels: Tensor, signals: Signals | None, maps: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits (B, K), the loss to minimise, and its parts in the order of `names`.

        Args:
            output: logits (B, K), or those and the auxiliary head's.
            labels: int64 (B,).
            signals: what the teacher says; without them its parts are left out.
            maps: the student's attention maps, one for each tap.
        """
        logits, second = output if isinstance(output, tuple) else (output, None)
        parts = {CROSS_ENTROPY: self._cross_entropy(logits, labels)}
        if signals is not None and self.kd_weight > 0:
            parts[KD] = distillation_loss(logits, signals.logits, self.kd_temperature)
        if signals is not None and self.attention_weight > 0:
            parts[ATTENTION] = attention_loss(maps, signals.maps)
        if second is not None and self.auxiliary_weight > 0:
            parts[AUXILIARY_LOSS] = self._cross_entropy(second, labels)
        return logits, self._sum(parts), tuple(parts.values())

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)

    def _sum(self, parts: dict[str, Tensor]) -> Tensor:
        loss = parts[CROSS_ENTROPY] if KD not in parts else (1 - self.kd_weight) * parts[CROSS_ENTROPY]
        weights = {KD: self.kd_weight, ATTENTION: self.attention_weight, AUXILIARY_LOSS: self.auxiliary_weight}
        for name, weight in weights.items():
            if name in parts:
                loss = loss + weight * parts[name]
        return loss


class Objective:
    """The training loss of one network under one recipe; `names` are its parts, unweighted, as the records call them.

    Raises InputError for what the recipe weighs and is not there: a teacher, taps.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, teacher: Teacher | None = None, taps: Sequence[str] = ()):
        if recipe.needs_teacher and teacher is None:
            raise InputError("`kd_weight` and `attention_weight` above 0 need a teacher, but there is none")
        self.network, self.recipe = network, recipe
        on_gpu = next(network.parameters()).is_cuda
        rebuild = BatchedRebuild(network) if on_gpu and not recipe.rebuild_checkpoint else None
        self.rebuild = rebuild if rebuild is not None and rebuild.maps else None
        self.teacher = teacher if recipe.needs_teacher else None
        attends = recipe.attention_weight > 0
        self.taps = Taps(network, tuple(taps) or default_taps(network)) if attends else None
        self.loss = Loss.of(recipe)
        self.names = self.loss.names

    def ask(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals | None:
        """What the teacher says about the views `cache_epoch` of images `indices` (B,); None without a teacher."""
        return None if self.teacher is None else self.teacher.signals(images, indices, cache_epoch)

    def rebuilt(self) -> AbstractContextManager[Any]:
        """On a GPU, within: all maps use weights rebuilt now, together; small kernels cost more than their work."""
        return self.rebuild.use_rebuilt_weights() if self.rebuild is not None else nullcontext()

    def __call__(
        self, images: Tensor, labels: Tensor, signals: Signals | None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Logits (B, K), the loss to minimise, and its parts in the order of `names`.

        Args:
            images: views (B, C, H, W).
            labels: int64 (B,).
            signals: what the teacher says about them, from `ask`.
            autocast: the precision in which the network runs.
        """
        with self.taps or nullcontext(), autocast(), self.rebuilt():
            output = self.network(images)
        return self.loss(output, labels, signals, self.taps.take() if self.taps is not None else ())
