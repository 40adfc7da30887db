"""The configurations of a study whose steps cost differently, and how one of them is built to be measured."""

from __future__ import annotations

import json
from collections.abc import Iterable

import optuna
import torch
from torch import Tensor

from lowrank.data import ImageData
from lowrank.distillation import Signals, Sizes, Teacher
from lowrank.errors import InfeasibleError
from lowrank.training import DataParallelGroup, MakeTrainer, Trainer
from sweeps.records import Trial, TrialSpec
from sweeps.space import TEACHER_SECTION, Space, Value
from sweeps.trials import Resolver, make_trainer, reachable_strata

WARM_UP_STEPS = 10  # of a trial whose speed is measured
LEARNING_RATE = 1e-6  # its first steps are repeated more often than the recipe means: nothing may diverge
SAMPLES = 3  # of each stratum, where the space is no grid
STEP_FIELDS = ("batch_size", "precision", "accumulate", "rebuild_checkpoint", "ema_decay", "decay", "freeze")


def distinct_trials(space: Space, resolver: Resolver) -> list[Trial]:
    """Make one trial of each configuration whose steps cost differently.

    Args:
        space: a grid, all of whose points are taken, or another space, of which a sample is.
        resolver: makes trials of points.

    Returns:
        The trials, references included, those with the fewest parameters first.
    """
    trials: dict[str, Trial] = {}
    for point in _points(space, resolver):
        try:
            trial = resolver.resolve(point)
        except InfeasibleError:
            continue
        trials.setdefault(configuration(trial.specification), trial)
    for trial in resolver.references()[0]:
        trials.setdefault(configuration(trial.specification), trial)
    return sorted(trials.values(), key=lambda trial: (trial.counts["params"], trial.trial_id))


def typical_and_largest(space: Space, resolver: Resolver) -> tuple[Trial, Trial]:
    """Choose the trials that stand for a study in measurements.

    Args:
        space: the study's space.
        resolver: makes its trials.

    Returns:
        The searched trial of the middle size, and the largest trial of all.
    """
    trials = distinct_trials(space, resolver)
    references = {trial.trial_id for trial in resolver.references()[0]}
    searched = [trial for trial in trials if trial.trial_id not in references] or trials
    return searched[len(searched) // 2], trials[-1]


def configuration(specification: TrialSpec) -> str:
    """Return those fields of a specification that decide what a step costs.

    Learning rates and the like are not among them. Records of the memory probe hold the text.

    Args:
        specification: of a trial.

    Returns:
        JSON with sorted keys.
    """
    # The engine `auto` depends on how long a trial is
    engine_fields = ("engine", "epochs") if specification.train.engine == "auto" else ("engine",)
    step = specification.train.model_dump(mode="json", include={*STEP_FIELDS, *engine_fields}, exclude_unset=True)
    model = specification.model_dump(mode="json", include={"network", "method", "allocation"}, exclude_unset=True)
    has_teacher = specification.teacher is not None
    return json.dumps({**model, "train": step, TEACHER_SECTION: has_teacher}, sort_keys=True)


def _points(space: Space, resolver: Resolver) -> Iterable[dict[str, Value]]:
    if space.search.sampler == "grid":
        return resolver.points.grid()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    strata, _ = reachable_strata(space, resolver)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [resolver.points.suggest(stratum, study.ask()) for stratum in strata for _ in range(SAMPLES)]


class SilentTeacher:
    """Answers at once with signals of the right shapes, as a teacher does that is read from a cache."""

    def __init__(self, classes: int, sizes: Sizes):
        """Prepare the answers.

        Args:
            classes: of the data set.
            sizes: (height, width) of each attention map.
        """
        self._classes, self._sizes = classes, sizes

    def signals(self, images: Tensor, indices: Tensor, cache_epoch: int) -> Signals:
        """Return logits of zeros and maps of ones; see `Teacher`."""
        count = len(images)
        maps = tuple(torch.ones(count, *size, dtype=torch.float16, device=images.device) for size in self._sizes)
        return Signals(torch.zeros(count, self._classes, device=images.device), maps)


def trainer_maker(
    specification: TrialSpec, data: ImageData, device: torch.device, group: DataParallelGroup | None = None
) -> MakeTrainer:  # fmt: skip
    """Return what makes a specification's trainer at any batch size.

    Its teacher, where it has one, answers at once.

    Args:
        specification: of a trial.
        data: its data set.
        device: where it trains.
        group: the processes that share each batch; None for this process alone.

    Returns:
        A function of the batch size, which is cut to the training split.
    """

    def find_teacher() -> Teacher:
        assert specification.teacher is not None
        return SilentTeacher(len(data.classes), specification.teacher.sizes)

    def make(batch_size: int) -> Trainer:
        cut = specification.with_train(batch_size=min(batch_size, len(data.train)))
        return make_trainer(cut, data, device.type, find_teacher, group)

    return make


def device_name(device: torch.device) -> str:
    """Return the card's name, or `cpu`.

    Args:
        device: of this machine.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
