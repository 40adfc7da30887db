"""The configurations of a study whose steps cost differently, and how one of them is built to be measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import optuna
import torch
from torch import Tensor, nn

from lowrank.data import ImageData
from lowrank.distillation.teacher import Signals, Sizes, Teacher, common_sizes, tap_sizes
from lowrank.errors import InfeasibleError
from lowrank.training.engine.memory_probe import MakeTrainer
from lowrank.training.trainer import Trainer
from sweeps.records.specification import Trial
from sweeps.space.model import Space
from sweeps.space.teacher_settings import SECTION
from sweeps.trials.build import make_trainer
from sweeps.trials.feasibility import reachable_strata
from sweeps.trials.resolver import Resolver

SAMPLES = 3  # of each stratum, where the space is no grid
STEP_FIELDS = ("batch_size", "precision", "accumulate", "rebuild_checkpoint", "ema_decay", "decay", "freeze")


def distinct(space: Space, resolver: Resolver) -> list[Trial]:
    """One trial for each configuration that costs differently, in the order of size: of a grid all, else a sample."""
    found: dict[str, Trial] = {}
    for point in _points(space, resolver):
        try:
            trial = resolver.resolve(point)
        except InfeasibleError:
            continue
        found.setdefault(configuration(trial.specification), trial)
    for trial in resolver.references()[0]:
        found.setdefault(configuration(trial.specification), trial)
    return sorted(found.values(), key=lambda trial: (trial.counts["params"], trial.trial_id))


def configuration(specification: dict[str, Any]) -> str:
    """What of a specification decides the cost of a step, as JSON; learning rates and the like do not."""
    train = specification["train"]
    asked_engine = ("engine", "epochs") if train["engine"] == "auto" else ("engine",)  # `auto` asks how long a trial is
    fields = {key: train[key] for key in (*STEP_FIELDS, *asked_engine) if key in train}
    asked = SECTION in specification
    built = {key: specification[key] for key in ("network", "method", "allocation") if key in specification}
    return json.dumps({**built, "train": fields, SECTION: asked}, sort_keys=True)


def _points(space: Space, resolver: Resolver) -> Iterable[dict[str, Any]]:
    if space.search.sampler == "grid":
        return resolver.points.grid()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    strata, _ = reachable_strata(space, resolver)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [resolver.points.suggest(stratum, study.ask()) for stratum in strata for _ in range(SAMPLES)]


class SilentTeacher:
    """Answers at once, with signals of the right shapes: what a student costs beside a cache."""

    def __init__(self, classes: int, sizes: Sizes):
        self._classes, self._sizes = classes, sizes

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """See Teacher."""
        count = len(images)
        maps = tuple(torch.ones(count, *size, dtype=torch.float16, device=images.device) for size in self._sizes)
        return Signals(torch.zeros(count, self._classes, device=images.device), maps)


def trainer_maker(specification: dict[str, Any], data: ImageData, device: torch.device) -> MakeTrainer:
    """Makes the specification's trainer at a batch size (at most the training split); a teacher answers at once."""

    def teach(student: nn.Module) -> Teacher | None:
        section = specification.get(SECTION)
        if section is None:
            return None
        sizes = common_sizes(section["sizes"], tap_sizes(student, section["student_taps"], data.image_shape))
        return SilentTeacher(len(data.classes), sizes)

    def make(batch_size: int) -> Trainer:
        size = min(batch_size, len(data.train))
        train = {**specification["train"], "batch_size": size}
        return make_trainer({**specification, "train": train}, data, device.type, teach)

    return make


def device_name(device: torch.device) -> str:
    """The card's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
