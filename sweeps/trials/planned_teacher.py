"""The teacher of a space before it is trained: its name, and a description without weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from lowrank.data import ImageData
from lowrank.distillation import RECORD_FILE, TeacherWeights
from sweeps.space import Space, teacher_space
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import ResolvedTeacher, match_teacher, resolve_teacher

UNTRAINED = "untrained"  # stands for the hash of weights that do not exist yet


def with_teacher_name(space: Space, data: ImageData) -> Space:
    """Fill in the name of a teacher of which the space only says how it is trained.

    Args:
        space: with a teacher or without.
        data: of teacher and students.

    Returns:
        The space; its teacher is named by network and id of its training.

    Raises:
        InputError: the teacher cannot be trained so.
    """
    settings = space.teacher
    if settings is None or settings.train is None or settings.name:
        return space
    training = teacher_space(space)
    name = f"{training.network.name}_{Resolver(training, data).resolve({}).trial_id[:8]}"
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return replace(space, teacher=settings.model_copy(update={"name": name}))


def describe_teacher(space: Space, data: ImageData, root: Path) -> ResolvedTeacher | None:
    """Find the teacher of a space, or describe the one that will be trained.

    Args:
        space: with a teacher or without.
        data: of teacher and students.
        root: folder of teachers.

    Returns:
        The teacher, the hash of its weights `UNTRAINED` where it is yet to be trained; None where the space has none.

    Raises:
        InputError: as `resolve_teacher`, or the teacher cannot be trained so.
    """
    space = with_teacher_name(space, data)
    if not _is_missing(space, root):
        return resolve_teacher(space, data, root)
    assert space.teacher is not None
    network = teacher_space(space).network
    weights = TeacherWeights(str(space.teacher.name), UNTRAINED, network, data.image_shape, len(data.classes))
    return match_teacher(space, data, weights)


def _is_missing(space: Space, root: Path) -> bool:
    """Whether the teacher must be trained."""
    settings = space.teacher
    return (
        settings is not None and settings.train is not None and not (root / str(settings.name) / RECORD_FILE).exists()
    )
