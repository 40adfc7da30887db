"""How a network is trained: one frozen object. The named recipes are in lowrank.training.recipes.

Units: `lr` and `weight_decay` as torch's SGD or AdamW takes them; `milestones` and `warmup` are shares of the whole
run, so that a recipe keeps its shape when `epochs` changes.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lowrank.utils import read_module_names

Decay = Literal["plain", "scaled", "frobenius"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["auto", "compiled", "captured", "plain"]

# Fields that do nothing at their default and are left out of `identity` then; so their defaults must never change
_OPTIONAL = frozenset(
    (
        "kd_weight", "attention_weight", "auxiliary_weight", "factor_lr", "body_lr", "head_lr", "freeze", "drop_path",
        "ema_decay", "accumulate", "label_smoothing", "clip_norm", "decay_multiplier", "optimizer",
        "class_weights", "sampler",
    )
)  # fmt: skip


class Recipe(BaseModel):
    """The optimizer, its schedule, loss and regularisation.

    The defaults are those of the original study's tensor-train sweep on ResNet-9.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    epochs: int = Field(default=128, ge=0, le=100_000)  # 0: the network is only evaluated
    batch_size: int = Field(default=512, ge=1)
    lr: float = Field(default=0.2, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)  # adamw: of the mean of gradients, beta 1
    square_momentum: float = Field(default=0.999, ge=0, lt=1)  # adamw: of the mean of their squares, beta 2
    nesterov: bool = True  # sgd
    weight_decay: float = Field(default=5e-4, ge=0)
    decay: Decay = "scaled"  # of factors: plain, times K/N, or on the rebuilt weight (lowrank.training.weight_decay)
    scaled_decay: bool = True  # short form: true is `decay: scaled`, false `decay: plain`
    decay_scope: Literal["network", "layer"] = "network"  # scaled: K/N of the whole network or of each layer
    decay_multiplier: float = Field(default=1.0, gt=0, le=10_000)  # of the decay of factors, however it is set
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0, lt=1)  # share of the run with a linear rise; one_cycle: where its peak is
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)  # step: shares of the run at which lr is multiplied by gamma
    gamma: float = Field(default=0.2, gt=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"  # balanced: each class counts alike in the cross-entropy
    sampler: Literal["shuffle", "balanced"] = "shuffle"  # balanced: each class is drawn as often as any other
    clip_norm: float | None = Field(default=None, gt=0)
    kd_weight: float = Field(default=0.0, ge=0, le=1)  # share of distillation in the loss, beside cross-entropy
    kd_temperature: float = Field(default=4.0, gt=0)
    attention_weight: float = Field(default=0.0, ge=0)  # of attention transfer, added; 1000 in the original study
    auxiliary_weight: float = Field(default=0.0, ge=0)  # of an auxiliary head's cross-entropy, added
    factor_lr: float = Field(default=1.0, gt=0)  # times lr, of factors outside the head
    body_lr: float = Field(default=1.0, gt=0)  # times lr, of parameters that are neither factors nor head
    head_lr: float = Field(default=1.0, gt=0)  # times lr, of the layer that gives the classes
    freeze: tuple[str, ...] = ()  # shell-style patterns of modules that are not trained
    drop_path: float = Field(default=0.0, ge=0, lt=1)  # share of paths dropped in the last epoch, rising from 0
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  # of the moving average of weights, which is evaluated; 0: none
    accumulate: int = Field(default=1, ge=1)  # micro-batches that a batch is cut into, one after the other
    rebuild_checkpoint: bool = False  # rebuild weights again in the backward pass: less memory, same numbers
    precision: Precision = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    engine: Engine = "auto"  # auto: see lowrank.training.engine.cuda_graph.choose_engine
    shift: int | None = Field(default=None, ge=0)  # pixels; None: the data set's own
    flip: bool | None = None
    cutout: int | None = Field(default=None, ge=0)  # side in pixels

    _module_names = field_validator("freeze", mode="before")(read_module_names)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if list(self.milestones) != sorted(self.milestones) or any(not 0 < share < 1 for share in self.milestones):
            raise ValueError("`milestones` must rise within (0, 1), as shares of the run")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov` needs a `momentum` above 0")
        if self.accumulate > self.batch_size:
            raise ValueError(f"`accumulate` cuts a batch of {self.batch_size} into parts, but got {self.accumulate}")
        self._agree_on_decay()
        if self.optimizer == "adamw" and self.decay == "frobenius":
            raise ValueError("`decay: frobenius` needs `optimizer: sgd`: AdamW would rescale its gradient")
        return self

    def identity(self) -> dict[str, object]:
        """Collect the fields that a training's numbers depend on.

        Equal trainings have equal identities. Left out are fields that change no number, fields that another field
        makes idle, and optional fields at the value that does nothing: so a recipe keeps its identity when `Recipe`
        gains an optional field. The fields of augmentation are left out too, because a specification has a section of
        its own for them.

        Returns:
            Plain data, as JSON holds it.
        """
        if self.epochs == 0:  # nothing is trained
            return {"epochs": 0, "precision": self.precision}
        idle = {"rebuild_checkpoint", "engine", "scaled_decay", "shift", "flip", "cutout"}
        idle |= set() if self.schedule == "step" else {"milestones", "gamma"}
        idle |= set() if self.kd_weight > 0 else {"kd_temperature"}
        idle |= {"square_momentum"} if self.optimizer == "sgd" else {"nesterov"}
        return {
            name: value for name, value in self.model_dump(mode="json", exclude=idle).items()
            if name not in _OPTIONAL or getattr(self, name) != type(self).model_fields[name].default
        }  # fmt: skip

    @property
    def needs_teacher(self) -> bool:
        """Whether a part of the loss needs a teacher."""
        return self.kd_weight > 0 or self.attention_weight > 0

    def _agree_on_decay(self) -> None:
        """Derive `decay` from `scaled_decay` or the reverse, so that equal trainings have equal recipes.

        `decay_scope` becomes "network" if nothing is scaled, because it then has no effect.
        """
        explicit = self.model_fields_set
        if "decay" not in explicit:
            self.__dict__["decay"] = "scaled" if self.scaled_decay else "plain"
        elif "scaled_decay" not in explicit:
            self.__dict__["scaled_decay"] = self.decay == "scaled"
        elif self.scaled_decay != (self.decay == "scaled"):
            value = str(self.scaled_decay).lower()
            raise ValueError(f"`scaled_decay: {value}` contradicts `decay: {self.decay}`; give one of the two")
        if self.decay != "scaled":
            self.__dict__["decay_scope"] = "network"


def lr_factor(recipe: Recipe, progress: float) -> float:
    """Compute the schedule's factor of the learning rate.

    Args:
        recipe: has the schedule.
        progress: share of the run that is done, 0 at the first step, below 1 at the last.

    Returns:
        A share of `recipe.lr`.
    """
    if recipe.schedule == "one_cycle":
        peak = recipe.warmup or 0.3
        return progress / peak if progress < peak else (1 - progress) / (1 - peak)
    if progress < recipe.warmup:
        return progress / recipe.warmup
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - recipe.warmup) / (1 - recipe.warmup)))
    if recipe.schedule == "step":
        return recipe.gamma ** sum(progress >= share for share in recipe.milestones)
    return 1.0
