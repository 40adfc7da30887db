"""The teacher of a space before it is trained: its name, and a stand-in for the weights that are not there yet."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lowrank.data import ImageData
from lowrank.distillation.teacher_files import RECORD_FILE, TeacherWeights
from sweeps.space.model import Space
from sweeps.space.parse import teacher_space
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import ResolvedTeacher, match_teacher, resolve_teacher

UNTRAINED = "untrained"  # the hash of weights that are not there yet


def with_teacher_name(space: Space, data: ImageData) -> Space:
    """The space with its teacher's name filled in where it says how that is trained, but not its name."""
    settings = space.teacher
    if settings is None or settings.train is None or settings.name:
        return space
    own = teacher_space(space)
    name = f"{own.network.name}_{Resolver(own, data).resolve({}).trial_id[:8]}"
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return replace(space, teacher=settings.model_copy(update={"name": name}))


def describe_teacher(space: Space, data: ImageData, root: Path) -> ResolvedTeacher | None:
    """The teacher of a space, with a stand-in for the weights of one that will be trained; None where it has none.

    Raises InputError as `resolve_teacher` does.
    """
    space = with_teacher_name(space, data)
    if not _is_missing(space, root):
        return resolve_teacher(space, data, root)
    assert space.teacher is not None
    own = teacher_space(space)
    found = TeacherWeights(str(space.teacher.name), UNTRAINED, own.network, data.image_shape, len(data.classes))
    return match_teacher(space, data, found)


def _is_missing(space: Space, root: Path) -> bool:
    """Whether the teacher must be trained."""
    settings = space.teacher
    return (
        settings is not None and settings.train is not None and not (root / str(settings.name) / RECORD_FILE).exists()
    )
