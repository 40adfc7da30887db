"""The teacher of a space, found and checked, and what of it belongs to a trial's specification.

A teacher is part of a specification only where the recipe gives it a weight, so that a study with and one without a
teacher share their plain runs. Whether it is asked live or through a cache is no part: both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.data import ImageData
from lowrank.distillation.teacher import Sizes, Taps, default_taps, tap_sizes
from lowrank.distillation.teacher_files import WEIGHTS_FILE, TeacherWeights, find_teacher
from lowrank.errors import InputError
from lowrank.networks.images import ImageShape
from lowrank.networks.registry import NetworkSettings, make_network
from lowrank.training.recipe import Recipe
from sweeps.space.model import Space
from sweeps.space.teacher_settings import TEACHER_SECTION, TEACHER_WEIGHTS, TeacherSettings


@dataclass(frozen=True)
class ResolvedTeacher:
    """A space's teacher, found and checked against its data and its students."""

    settings: TeacherSettings
    found: TeacherWeights
    taps: tuple[str, ...]
    sizes: Sizes  # of the teacher's maps

    @property
    def name(self) -> str:
        """Its name for people."""
        if self.found.record is not None:
            return self.found.record.name
        path = Path(self.found.reference)
        return path.parent.name if path.name == WEIGHTS_FILE else self.found.reference

    def about(self) -> dict[str, Any]:
        """For the study's header."""
        record = self.found.record
        known = record.model_dump(include={"val_error", "test_error", "params"}) if record else {}
        return {"name": self.name, "weights": self.found.sha256, "network": self.found.network.name, **known}

    def section(self, recipe: Recipe, student: NetworkSettings, views: int | None, data: ImageData) -> dict[str, Any]:
        """What the teacher adds to a specification under this recipe: {} where it is not asked."""
        if not recipe.needs_teacher:
            return {}
        attends = recipe.attention_weight > 0
        taps = self.settings.student_taps or default_student_taps(student, data.image_shape, len(data.classes))
        about = {
            "name": self.name, "source": self.found.reference, "own_network": self.found.own_network,
            "weights": self.found.sha256, "taps": list(self.taps) if attends else [],
            "student_taps": list(taps) if attends else [],
            "sizes": [list(size) for size in self.sizes] if attends else [],
            "views": views if views is not None and views < recipe.epochs else None,
        }  # fmt: skip
        return {TEACHER_SECTION: about}


def without_teacher(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The same network as one that is only evaluated."""
    train = {**specification["train"], **dict.fromkeys(TEACHER_WEIGHTS, 0.0)}
    return {**{key: value for key, value in specification.items() if key != TEACHER_SECTION}, "train": train}


def default_student_taps(network: NetworkSettings, image_shape: ImageShape, classes: int) -> tuple[str, ...]:
    """The ends of a network's stages; raises InputError for one that does not name them."""
    return default_taps(_dense(network, image_shape, classes))


def _dense(network: NetworkSettings, image_shape: ImageShape, classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make_network(network.model_copy(update={"weights": None}), image_shape, classes)


def resolve_teacher(space: Space, data: ImageData, root: Path) -> ResolvedTeacher | None:
    """The teacher of a space, None where it has none.

    Raises InputError when there is no such teacher in `root`, it may not teach on `data`, or teacher and students
    cannot be compared at their taps.
    """
    settings = space.teacher
    if settings is None:
        return None
    assert settings.name is not None  # see sweeps.teachers.ensure
    found = find_teacher(settings.name, root, network=settings.network)
    found.check(data, allow_unverified=settings.unchecked)
    return match_teacher(space, data, found)


def match_teacher(space: Space, data: ImageData, found: TeacherWeights) -> ResolvedTeacher:
    """A space's teacher, once it is found; raises InputError where it and the students cannot be compared."""
    settings = space.teacher
    assert settings is not None
    if space.largest("attention_weight") == 0:
        return ResolvedTeacher(settings, found, (), ())
    network = _dense(found.network, data.image_shape, found.classes)
    taps = settings.taps or default_taps(network)
    teaching = ResolvedTeacher(settings, found, taps, tap_sizes(network, taps, data.image_shape))
    for student in _students(space):
        _check_taps(teaching, student, data)
    return teaching


def _students(space: Space) -> list[NetworkSettings]:
    """The space's network, and what it becomes at each end of its searched fields."""
    fields = [(name.partition(".")[2], domain) for name, domain in space.domains.items() if name.startswith("network.")]
    own = [
        NetworkSettings(**{**space.network.model_dump(), key: value})
        for key, domain in fields
        for value in domain.corners()
    ]
    return own or [space.network]


def _check_taps(teaching: ResolvedTeacher, student: NetworkSettings, data: ImageData) -> None:
    network = _dense(student, data.image_shape, len(data.classes))
    taps = teaching.settings.student_taps or default_taps(network)
    Taps(network, taps)
    if len(taps) != len(teaching.taps):
        raise InputError(
            f"attention is compared tap by tap, but the teacher {teaching.name} has {len(teaching.taps)} "
            f"({', '.join(teaching.taps)}) and {student.name} has {len(taps)} ({', '.join(taps)}); give as many in "
            "`teacher.taps` and `teacher.student_taps`"
        )
