"""Builds what a specification describes: the student, its trainer and the data it is trained on. Knows no Ray."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lowrank.compression.substitution import build_sized_student
from lowrank.data import AugmentationSettings, DataSettings, ImageData, load_data
from lowrank.distillation.teacher import Teacher
from lowrank.errors import InputError
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.engine.data_parallel import DataParallelGroup
from lowrank.training.recipe import Recipe
from lowrank.training.trainer import Trainer


def make_trainer(
    specification: dict[str, Any], data: ImageData, device: str,
    teach: Callable[[nn.Module], Teacher | None] = lambda student: None, ranks: DataParallelGroup | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Trainer:  # fmt: skip
    """The trainer that a specification describes, at its first epoch; `teach` finds the student's teacher.

    `say` is told what the user should know.
    """
    recipe = Recipe(**specification["train"])
    network, decay_ratio = make_student(specification, data)
    section = specification.get("teacher") or {}
    return Trainer(
        network, data, recipe, augmentation=AugmentationSettings(**specification["views"]),
        order_seed=int(specification["seed"]), decay_ratio=decay_ratio, device=device, teacher=teach(network),
        taps=section.get("student_taps", ()), cache_epochs=section.get("views"), group=ranks, notify=say,
    )  # fmt: skip


def make_student(specification: dict[str, Any], data: ImageData) -> tuple[nn.Module, float]:
    """The network that a specification describes, and its decay ratio K / N (lowrank.training.weight_decay)."""
    settings = NetworkSettings(**specification["network"])
    network, plan, sized = build_sized_student(
        settings, specification["method"], data.image_shape, len(data.classes),
        allocation=specification.get("allocation"), seed=int(specification["seed"]),
    )  # fmt: skip
    return network, plan.params(sized) / plan.params(make_method({"name": plan.base}))


def load_trial_data(specification: dict[str, Any], data_dir: str | None) -> ImageData:
    """The trial's data set; raises InputError when this machine holds another than the study was started with."""
    fields = dict(specification["data"])
    expected = fields.pop("fingerprint")
    data = load_data(DataSettings(**fields), Path(data_dir) if data_dir else None)
    if data.fingerprint != expected:
        raise InputError(f"{data.name} here has the fingerprint {data.fingerprint}, but the study has {expected}")
    return data
