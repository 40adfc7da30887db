"""Gives a worker the teacher of a specification: live, or read from a cache on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowrank.data import ImageData
from lowrank.distillation import (
    CachedTeacher,
    CacheKey,
    CacheSource,
    Layout,
    LiveTeacher,
    Notify,
    Teacher,
    TeacherCache,
    fill_cache,
    load_teacher,
)
from lowrank.training import Recipe, use_channels_last
from sweeps.records import TeacherSection, TrialSpec
from sweeps.teachers.cache_options import CacheOptions
from sweeps.trials import built_as


def teacher_dtype(recipe: Recipe, device: str) -> torch.dtype | None:
    """Return the type in which the teacher runs.

    Args:
        recipe: of the student.
        device: where it trains.

    Returns:
        bfloat16 on an accelerator, unless the recipe says float32; None for float32.
    """
    return torch.bfloat16 if torch.device(device).type != "cpu" and recipe.precision != "float32" else None


class _LiveTeachers:
    """Holds the live teacher of this process, loaded at its first use; trials of one worker share it."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._teacher: LiveTeacher | None = None

    def get(
        self, section: TeacherSection, data: ImageData, device: str, autocast: torch.dtype | None
    ) -> LiveTeacher:  # fmt: skip
        assert section.source is not None  # older records lack it, and such trials are not trained again
        key = (section.source, section.weights, section.taps, device, autocast)
        if self._teacher is None or key != self._key:
            self._teacher = None  # frees its memory before another is loaded
            network = load_teacher(
                section.source, section.weights, device, trusted_network=section.own_network,
                built_as=built_as(section, data),
            )  # fmt: skip
            use_channels_last(network)
            self._teacher, self._key = LiveTeacher(network, section.taps, autocast=autocast), key
        return self._teacher


_LIVE = _LiveTeachers()


def make_teacher(
    specification: TrialSpec, data: ImageData, device: str, options: CacheOptions, notify: Notify = print,
    on_epoch_cached: Callable[[int], None] | None = None, on_progress: Callable[[], None] | None = None,
) -> Teacher:  # fmt: skip
    """Make the teacher that a specification's student asks, and fill its cache.

    Args:
        specification: of a trial with a teacher.
        data: its data set.
        device: where it trains.
        options: where caches lie.
        notify: takes notices: what is built, and every fall back to the live teacher.
        on_epoch_cached: called with the number of each cache epoch that is filled, from 0.
        on_progress: called while this process fills the cache, at most once a second.

    Returns:
        The teacher.

    Raises:
        InputError: the teacher's weights are missing or have changed.
    """
    section, recipe = specification.teacher, specification.train
    assert section is not None
    autocast = teacher_dtype(recipe, device)

    def live() -> Teacher:
        return _LIVE.get(section, data, device, autocast)

    if options.root is None:
        return live()
    cache = open_cache(specification, data, options, autocast)
    source = CacheSource(teacher=live, data=data, device=device, batch_size=recipe.batch_size)
    cache_epochs = specification.cache_epochs
    if not fill_cache(
        cache, source, cache_epochs, notify=notify, on_epoch_cached=on_epoch_cached, on_progress=on_progress
    ):
        return live()
    repair = partial(fill_cache, cache, source, cache_epochs, notify=notify)
    return CachedTeacher(cache, data, live, device=device, notify=notify, repair=repair)


def open_cache(
    specification: TrialSpec, data: ImageData, options: CacheOptions, autocast: torch.dtype | None
) -> TeacherCache:
    """Open the cache that a specification's student reads; nothing is written.

    Args:
        specification: of a trial with a teacher.
        data: its data set.
        options: where caches lie.
        autocast: the type in which the teacher runs; None for float32.

    Returns:
        The cache, which may be empty.
    """
    section = specification.teacher
    assert section is not None
    key = CacheKey(
        weights=section.weights, data=data.fingerprint, views=specification.views, taps=section.taps,
        layout=Layout(len(data.train), len(data.classes), section.sizes),
        precision="float32" if autocast is None else str(autocast).removeprefix("torch."),
    )  # fmt: skip
    return TeacherCache(Path(str(options.root)), key, sources=_paths(options.sources))


def _paths(names: Sequence[str]) -> list[Path]:
    return [Path(name) for name in names]
