"""Fills the teacher cache before the first trial starts, on the device of a trial, and shows the progress.

Trials would fill it themselves, one of them while the others wait: here the user sees it. On a cluster this fills the
cache of one machine; the others copy its cache epochs, or make their own with their first trial.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowrank.distillation import MAX_IDLE_SECONDS
from lowrank.errors import HungError, InfeasibleError
from lowrank.utils import IdleWatch, last_line
from sweeps.cluster import assigned_device
from sweeps.records import TrialSpec
from sweeps.resources import Share
from sweeps.search import Search
from sweeps.space import SEARCHABLE_FIELD, TEACHER_SECTION, TEACHER_WEIGHTS, StudyConfig
from sweeps.teachers.worker import CacheOptions, make_teacher
from sweeps.trials import corner_points, load_trial_data
from sweeps.utils import raise_if_interrupted

POLL_SECONDS = 0.3
START_SECONDS = 1800.0  # for a machine with a free share to come, and for the teacher to be loaded there


def cached_specifications(search: Search) -> list[TrialSpec]:
    """Return one specification for each cache that the search's students read.

    Args:
        search: the study's search.

    Returns:
        Of each cache the specification with the most cache epochs.
    """
    longest: dict[str, TrialSpec] = {}
    for specification in _specifications(search):
        if specification.teacher is None:
            continue
        sections = specification.model_dump(
            mode="json", include={"teacher", "network", "views"}, exclude={TEACHER_SECTION: {SEARCHABLE_FIELD}}
        )
        key = json.dumps(sections, sort_keys=True)
        if key not in longest or longest[key].cache_epochs < specification.cache_epochs:
            longest[key] = specification
    return list(longest.values())


def _specifications(search: Search) -> Iterator[TrialSpec]:
    """Yield those of the waiting trials, and of the space's points with the largest weights of the teacher."""
    yield from (trial.specification for trial in search.waiting)
    space = search.space
    grid = space.search.sampler == "grid"
    corners = [point for stratum in search.strata for point in corner_points(space, stratum)]
    points = search.resolver.points.grid() if grid else corners
    for point in points:
        largest = {}
        for name in (f"train.{weight}" for weight in TEACHER_WEIGHTS):
            if name in point and not grid:
                largest[name] = max(float(value or 0) for value in space.domains[name].corners())
        try:
            yield search.resolver.resolve({**point, **largest}).specification
        except InfeasibleError:
            continue


def build_caches(
    search: Search, options: CacheOptions, config: StudyConfig, share: Share, console: Console | None = None
) -> None:
    """Fill every teacher cache that the search needs.

    If one cannot be filled, a line says so, and its trials use the live teacher.

    Args:
        search: the study's search.
        options: where the caches lie.
        config: of the study.
        share: what a trial holds.
        console: for progress and notices; None for standard output.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    if options.root is None:
        return
    console = console or Console()
    for specification in cached_specifications(search):
        progress = ray.remote(_Progress).options(num_cpus=0).remote()
        fill = ray.remote(_fill).options(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=1)
        task = fill.remote(specification, options, share, config.data_dir, progress)
        try:
            lines = _wait_with_progress(task, progress, specification.cache_epochs, console)
        except (HungError, RayError) as error:
            lines = [f"no teacher cache yet: {last_line(error)}"]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Progress:
    """An actor that knows how far the task is, on whichever machine it runs: (signs of life, cache epochs built)."""

    def __init__(self) -> None:
        self._signs, self._built = 0, 0

    def report(self, built: int | None = None) -> None:
        """Note a sign of life, and how many cache epochs are built."""
        self._signs += 1
        self._built = self._built if built is None else built

    def state(self) -> tuple[int, int]:
        """Return what was reported."""
        return self._signs, self._built


def _wait_with_progress(task: Any, progress_actor: Any, cache_epochs: int, console: Console) -> list[str]:
    """Show a bar until a task ends; returns its notices. A Ctrl-C ends the task too, as does a task that hangs.

    Raises HungError if it does.
    """
    columns = (
        TextColumn("teacher cache"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("views"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=cache_epochs)
            signs, state = 0, progress_actor.state.remote()
            watches = {seconds: IdleWatch(seconds, lambda: signs) for seconds in (START_SECONDS, MAX_IDLE_SECONDS)}
            while not ray.wait([task], timeout=POLL_SECONDS)[0]:
                raise_if_interrupted()
                if ray.wait([state], timeout=0)[0]:
                    signs, built = ray.get(state)
                    progress.update(bar, completed=built)
                    state = progress_actor.state.remote()
                limit = MAX_IDLE_SECONDS if signs else START_SECONDS
                if watches[limit].is_idle():
                    raise HungError(f"the task that builds it made no progress for {limit:.0f} s")
        return list(ray.get(task))
    except (HungError, KeyboardInterrupt):
        ray.cancel(task, force=True)
        raise


def _fill(
    specification: TrialSpec, options: CacheOptions, share: Share, data_dir: Path | None, progress: Any
) -> list[str]:  # fmt: skip
    """Fill the cache of a specification, in a worker; returns the notices for the user."""
    torch.set_num_threads(max(1, int(share.cpus)))
    device = assigned_device(share.gpus)
    data = load_trial_data(specification, data_dir)
    notices: list[str] = []
    make_teacher(
        specification, data, device, options, notices.append,
        on_epoch_cached=lambda cache_epoch: progress.report.remote(cache_epoch + 1),
        on_progress=progress.report.remote,
    )  # fmt: skip
    return notices
