"""The section `teacher` of a space file as typed settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lowrank.errors import InputError
from lowrank.utils import read_module_names, validate_model
from sweeps.utils import check_plain_name

TEACHER_SECTION = "teacher"
SEARCHABLE_FIELD = "views"  # the only field that may be a domain
START = "start"  # as `teacher.weights`: the network that trials start from, so that it teaches its smaller forms
TEACHER_WEIGHTS = ("attention_weight", "kd_weight")  # fields of the recipe; a teacher is used where one is above 0


class TeacherSettings(BaseModel):
    """Which teacher is distilled from, and how its outputs are obtained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = Field(default=None, min_length=1)  # a name in the folder of teachers, a file, torchvision:...
    weights: str | None = None  # any file of trained weights of `network` or of the space's own network, or START
    train: dict[str, object] | None = None  # fields of the recipe that trains it where no teacher has its name
    width: float | None = Field(default=None, gt=0, le=16)  # of the network of `weights`; None: the space's own
    network: str | None = None  # the network that it must be; needed where that is the user's own code
    views: int | None = Field(default=None, ge=1)  # augmented views of each image; None: new ones in every epoch
    cache: bool = True  # whether its outputs are kept on disk
    taps: tuple[str, ...] = ()  # modules whose feature maps are compared; (): the ends of its stages
    student_taps: tuple[str, ...] = ()
    unchecked: bool = False  # accept a teacher without a record of the images that it was trained on

    _module_names = field_validator("taps", "student_taps", mode="before")(read_module_names)


def parse_teacher(fields: Mapping[str, Any], domains: Iterable[str]) -> TeacherSettings | None:
    """Check the section `teacher`.

    Args:
        fields: its literals.
        domains: dotted names of all searched fields of the space.

    Returns:
        The settings; None for a space without a teacher.

    Raises:
        InputError: a field is unknown, out of range or may not be searched, or the teacher can be neither found nor
            trained.
    """
    searched = [name for name in domains if name.startswith(f"{TEACHER_SECTION}.")]
    for name in searched:
        if name != f"{TEACHER_SECTION}.{SEARCHABLE_FIELD}":
            raise InputError(f"`{name}` cannot be searched; of a teacher `{TEACHER_SECTION}.{SEARCHABLE_FIELD}` can")
    if not fields and not searched:
        return None
    settings = validate_model(TeacherSettings, fields, TEACHER_SECTION)
    if settings.weights is not None and (settings.name is not None or settings.train is not None):
        field = "name" if settings.name is not None else "train"
        raise InputError(f"`teacher.weights` is a teacher by itself; leave `teacher.{field}` out")
    if settings.name is None and settings.train is None and settings.weights is None:
        raise InputError(
            "`teacher` needs a `name` or a file of `weights`, or says under `train` how it is trained where it is not "
            "there yet"
        )
    if settings.name is not None and settings.train is not None:  # it becomes a folder among the teachers
        check_plain_name(settings.name, "`teacher.name` of a teacher that is trained")
    return settings
