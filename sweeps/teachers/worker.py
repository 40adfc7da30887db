"""How a worker asks the teacher of a specification: live, or through a cache on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.data import AugmentationSettings, ImageData
from lowrank.distillation.cache import CacheKey, CacheSource, Notify, TeacherCache, fill_cache
from lowrank.distillation.cache_file import Layout
from lowrank.distillation.cached_teacher import CachedTeacher
from lowrank.distillation.teacher import LiveTeacher, Teacher, common_sizes, tap_sizes
from lowrank.distillation.teacher_files import load_teacher
from lowrank.training.recipe import Recipe
from sweeps.space.teacher_settings import TEACHER_SECTION

CACHE_FOLDER = ".teacher_cache"  # in the folder of studies


@dataclass(frozen=True)
class CacheOptions:
    """Where caches lie. `root` None: no cache, the live teacher is asked."""

    root: str | None = None
    sources: tuple[str, ...] = ()  # further folders of caches, whose finished cache epochs are copied

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
    report: Notify = print, on_epoch_cached: Callable[[int], None] | None = None,
) -> Teacher | None:  # fmt: skip
    """The teacher that a specification's student asks, its cache filled; None where it asks none.

    `report` is told of all that is built and of every fall back to the live teacher. Raises InputError for weights that
    are gone or changed.
    """
    section = specification.get(TEACHER_SECTION)
    if section is None:
        return None
    recipe = Recipe(**specification["train"])
    autocast = precision(recipe, device)

    def live() -> Teacher:
        return _LOADED.get(section, device, autocast)

    if options.root is None:
        return live()
    cache = open_cache(specification, data, student, options, autocast)
    build = CacheSource(teacher=live, data=data, device=device, batch_size=recipe.batch_size)
    cache_epochs = cache_epochs_of(specification)
    if not fill_cache(cache, build, cache_epochs, notify=report, on_epoch_cached=on_epoch_cached):
        return live()
    repair = partial(fill_cache, cache, build, cache_epochs, notify=report)
    return CachedTeacher(cache, data, live, device=device, notify=report, repair=repair)


def cache_epochs_of(specification: Mapping[str, Any]) -> int:
    """How many views of each image a trial sees."""
    return int(specification[TEACHER_SECTION]["views"] or specification["train"]["epochs"])


def open_cache(
    specification: Mapping[str, Any], data: ImageData, student: nn.Module, options: CacheOptions,
    autocast: torch.dtype | None,
) -> TeacherCache:  # fmt: skip
    """The cache that a specification's student reads; nothing is made."""
    section = specification[TEACHER_SECTION]
    sizes = common_sizes(section["sizes"], tap_sizes(student, section["student_taps"], data.image_shape))
    key = CacheKey(
        weights=section["weights"], data=data.fingerprint, views=AugmentationSettings(**specification["views"]),
        taps=tuple(section["taps"]), layout=Layout(len(data.train), len(data.classes), sizes),
        precision="float32" if autocast is None else str(autocast).removeprefix("torch."),
    )  # fmt: skip
    return TeacherCache(Path(str(options.root)), key, sources=_paths(options.sources))


def _paths(names: Sequence[str]) -> list[Path]:
    return [Path(name) for name in names]
