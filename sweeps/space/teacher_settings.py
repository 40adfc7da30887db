"""The section `teacher` of a space file as typed settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lowrank.errors import InputError
from lowrank.utils.validation import validate_model

TEACHER_SECTION = "teacher"
SEARCHABLE_FIELD = "views"  # the only field that may be a domain
TEACHER_WEIGHTS = ("attention_weight", "kd_weight")  # of the recipe: above 0, the teacher is asked


class TeacherSettings(BaseModel):
    """Which teacher, at which taps, over how many views; `views` None: new ones in every epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = Field(default=None, min_length=1)
    train: dict[str, Any] | None = None  # how it is trained where there is none of its name: fields of a recipe
    network: str | None = None  # which it must be; needed where it is code of one's own
    views: int | None = Field(default=None, ge=1)
    cache: bool = True
    taps: tuple[str, ...] = ()  # () the ends of its stages
    student_taps: tuple[str, ...] = ()
    unchecked: bool = False  # take one of which nobody says on what it was trained

    @field_validator("taps", "student_taps", mode="before")
    @classmethod
    def _names(cls, taps: Any) -> Any:
        """Modules of a sequence are named 0, 1, 2 ..., which a space reads as numbers."""
        whole = isinstance(taps, list | tuple)
        return [str(int(tap)) if isinstance(tap, int | float) else tap for tap in taps] if whole else taps


def parse_teacher(fields: Mapping[str, Any], domains: Iterable[str]) -> TeacherSettings | None:
    """Check the section's literals, beside the names of the searched fields; None where there is no section."""
    searched = [name for name in domains if name.startswith(f"{TEACHER_SECTION}.")]
    for name in searched:
        if name != f"{TEACHER_SECTION}.{SEARCHABLE_FIELD}":
            raise InputError(f"`{name}` cannot be searched; of a teacher `{TEACHER_SECTION}.{SEARCHABLE_FIELD}` can")
    if not fields and not searched:
        return None
    settings = validate_model(TeacherSettings, fields, TEACHER_SECTION)
    if settings.name is None and settings.train is None:
        raise InputError("`teacher` needs a `name`, or says under `train` how it is trained where it is not there yet")
    return settings
