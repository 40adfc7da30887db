"""The `teacher` of a space: its settings, what of it belongs to a trial's specification, and how a worker asks it.

A teacher is part of a specification only where the recipe gives it a weight, so that a study with and one without a
teacher share their plain runs. Whether it is asked live or through a cache is no part: both say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from lowrank.data import ImageData, ViewSettings
from lowrank.distillation.cache import (
    Build,
    CachedTeacher,
    CacheKey,
    Report,
    Sizes,
    TeacherCache,
    kept_sizes,
    prepare,
    tap_sizes,
)
from lowrank.distillation.cache_file import Layout
from lowrank.distillation.teacher import LiveTeacher, Taps, Teacher, default_taps
from lowrank.distillation.teacher_files import TORCHVISION, WEIGHTS_FILE, FoundTeacher, find_teacher, load_teacher
from lowrank.errors import InputError
from lowrank.networks import NetworkSettings, make_network
from lowrank.networks.base import ImageShape
from lowrank.training.recipe import Recipe
from lowrank.utils.validation import make

if TYPE_CHECKING:
    from sweeps.space.model import Space

SECTION = "teacher"
SEARCHED = "views"  # the only field that may be a domain
WEIGHTS = ("attention_weight", "kd_weight")  # of the recipe: above 0, the teacher is asked
CACHE_FOLDER = ".teacher_cache"  # in the folder of studies
IDENTITY = ("weights", "taps", "student_taps", "views")  # what of the section makes another trial


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


def parse_settings(fields: Mapping[str, Any], domains: Iterable[str]) -> TeacherSettings | None:
    """Check the section's literals, beside the names of the searched fields; None where there is no section."""
    searched = [name for name in domains if name.startswith(f"{SECTION}.")]
    for name in searched:
        if name != f"{SECTION}.{SEARCHED}":
            raise InputError(f"`{name}` cannot be searched; of a teacher `{SECTION}.{SEARCHED}` can")
    if not fields and not searched:
        return None
    settings = make(TeacherSettings, fields, SECTION)
    if settings.name is None and settings.train is None:
        raise InputError("`teacher` needs a `name`, or says under `train` how it is trained where it is not there yet")
    return settings


def check_teacher(space: Space) -> None:
    """Raises InputError where weights and teacher of a space do not go together."""
    asked = [weight for weight in WEIGHTS if most(space, weight) > 0]
    if asked and space.teacher is None:
        raise InputError(f"`train.{asked[0]}` above 0 needs a `teacher`; name one, or set it to 0")
    if space.teacher is not None and not asked:
        raise InputError("`teacher` is never asked: give `train.attention_weight` (the study's is 1000) or "
                         "`train.kd_weight` a value above 0, or leave `teacher` out")  # fmt: skip


def most(space: Space, weight: str) -> float:
    """The largest value that a weight of the recipe takes in the space."""
    domain = space.domains.get(f"train.{weight}")
    if domain is None:
        return float(getattr(space.recipe({}), weight))
    return max(float(value or 0) for value in domain.corners())


def absolute_teacher(content: dict[str, Any]) -> dict[str, Any]:
    """The space with a teacher's path as the user sees it now: workers and later resumes may start elsewhere."""
    section = content.get(SECTION)
    name = section.get("name") if isinstance(section, dict) else section
    if not isinstance(name, str) or name.startswith(TORCHVISION) or not ("/" in name or name.endswith(".safetensors")):
        return content
    fields = section if isinstance(section, dict) else {}
    return {**content, SECTION: {**fields, "name": str(Path(name).expanduser().resolve())}}


@dataclass(frozen=True)
class Teaching:
    """A space's teacher, found and checked against its data and its students."""

    settings: TeacherSettings
    found: FoundTeacher
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
        taps = self.settings.student_taps or student_taps(student, data.image_shape, len(data.classes))
        about = {
            "name": self.name, "source": self.found.reference, "own_network": self.found.own_network,
            "weights": self.found.sha256, "taps": list(self.taps) if attends else [],
            "student_taps": list(taps) if attends else [],
            "sizes": [list(size) for size in self.sizes] if attends else [],
            "views": views if views is not None and views < recipe.epochs else None,
        }  # fmt: skip
        return {SECTION: about}


def identity(specification: Mapping[str, Any]) -> dict[str, Any]:
    """What of a specification's teacher makes it another trial; {} where there is none."""
    section = specification.get(SECTION)
    return {} if section is None else {SECTION: {key: section[key] for key in IDENTITY}}


def without_teacher(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The same network as one that is only evaluated."""
    train = {**specification["train"], **dict.fromkeys(WEIGHTS, 0.0)}
    return {**{key: value for key, value in specification.items() if key != SECTION}, "train": train}


def student_taps(network: NetworkSettings, image_shape: ImageShape, classes: int) -> tuple[str, ...]:
    """The ends of a network's stages; raises InputError for one that does not name them."""
    return default_taps(_dense(network, image_shape, classes))


def _dense(network: NetworkSettings, image_shape: ImageShape, classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make_network(network.model_copy(update={"weights": None}), image_shape, classes)


def find_teaching(space: Space, data: ImageData, root: Path) -> Teaching | None:
    """The teacher of a space, None where it has none.

    Raises InputError when there is no such teacher in `root`, it may not teach on `data`, or teacher and students
    cannot be compared at their taps.
    """
    settings = space.teacher
    if settings is None:
        return None
    assert settings.name is not None  # see sweeps.teachers.ensure
    found = find_teacher(settings.name, root, network=settings.network)
    found.check(data, unchecked=settings.unchecked)
    return teaching_of(space, data, found)


def teaching_of(space: Space, data: ImageData, found: FoundTeacher) -> Teaching:
    """A space's teacher, once it is found; raises InputError where it and the students cannot be compared."""
    settings = space.teacher
    assert settings is not None
    if most(space, "attention_weight") == 0:
        return Teaching(settings, found, (), ())
    network = _dense(found.network, data.image_shape, found.classes)
    taps = settings.taps or default_taps(network)
    teaching = Teaching(settings, found, taps, tap_sizes(network, taps, data.image_shape))
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


def _check_taps(teaching: Teaching, student: NetworkSettings, data: ImageData) -> None:
    network = _dense(student, data.image_shape, len(data.classes))
    taps = teaching.settings.student_taps or default_taps(network)
    Taps(network, taps)
    if len(taps) != len(teaching.taps):
        raise InputError(
            f"attention is compared tap by tap, but the teacher {teaching.name} has {len(teaching.taps)} "
            f"({', '.join(teaching.taps)}) and {student.name} has {len(taps)} ({', '.join(taps)}); give as many in "
            "`teacher.taps` and `teacher.student_taps`"
        )


# In a worker


@dataclass(frozen=True)
class CacheOptions:
    """Where caches lie. `root` None: no cache, the live teacher is asked."""

    root: str | None = None
    sources: tuple[str, ...] = ()  # further folders of caches, whose finished slots are copied

    def to_config(self) -> dict[str, Any]:
        """Plain data for a trial's config."""
        return {"root": self.root, "sources": list(self.sources)}


NO_CACHE = CacheOptions()


def precision(recipe: Recipe, device: str) -> torch.dtype | None:
    """In which the teacher runs: bfloat16 on an accelerator unless the recipe says float32; None: float32."""
    return torch.bfloat16 if torch.device(device).type != "cpu" and recipe.precision != "float32" else None


class _Loaded:
    """The live teacher of this process, loaded when it is first asked; trials of one worker share it."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._teacher: LiveTeacher | None = None

    def get(self, section: Mapping[str, Any], device: str, autocast: torch.dtype | None) -> LiveTeacher:
        key = (section["source"], section["weights"], tuple(section["taps"]), device, autocast)
        if self._teacher is None or key != self._key:
            self._teacher = None  # before memory is taken for another
            network = load_teacher(section["source"], section["weights"], device, own_network=section["own_network"])
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._teacher, self._key = LiveTeacher(network, section["taps"], autocast=autocast), key
        return self._teacher


_LOADED = _Loaded()


def make_teacher(
    specification: Mapping[str, Any], data: ImageData, student: nn.Module, device: str, options: CacheOptions,
    report: Report = print, on_slot: Callable[[int], None] | None = None,
) -> Teacher | None:  # fmt: skip
    """The teacher that a specification's student asks, its cache filled; None where it asks none.

    `report` is told of all that is built and of every fall back to the live teacher. Raises InputError for weights that
    are gone or changed.
    """
    section = specification.get(SECTION)
    if section is None:
        return None
    recipe = Recipe(**specification["train"])
    autocast = precision(recipe, device)

    def live() -> Teacher:
        return _LOADED.get(section, device, autocast)

    if options.root is None:
        return live()
    cache = open_cache(specification, data, student, options, autocast)
    build = Build(teacher=live, data=data, device=device, batch_size=recipe.batch_size)
    slots = slots_of(specification)
    if not prepare(cache, build, slots, report=report, on_slot=on_slot):
        return live()
    mend = partial(prepare, cache, build, slots, report=report)
    return CachedTeacher(cache, data, live, device=device, report=report, mend=mend)


def slots_of(specification: Mapping[str, Any]) -> int:
    """How many views of each image a trial sees."""
    return int(specification[SECTION]["views"] or specification["train"]["epochs"])


def open_cache(
    specification: Mapping[str, Any], data: ImageData, student: nn.Module, options: CacheOptions,
    autocast: torch.dtype | None,
) -> TeacherCache:  # fmt: skip
    """The cache that a specification's student reads; nothing is made."""
    section = specification[SECTION]
    sizes = kept_sizes(section["sizes"], tap_sizes(student, section["student_taps"], data.image_shape))
    key = CacheKey(
        weights=section["weights"], data=data.fingerprint, views=ViewSettings(**specification["views"]),
        taps=tuple(section["taps"]), layout=Layout(len(data.train), len(data.classes), sizes),
        precision="float32" if autocast is None else str(autocast).removeprefix("torch."),
    )  # fmt: skip
    return TeacherCache(Path(str(options.root)), key, sources=_paths(options.sources))


def _paths(names: Sequence[str]) -> list[Path]:
    return [Path(name) for name in names]
