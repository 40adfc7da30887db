"""Fills the teacher cache before the first trial starts, on the device of a trial, and shows how far it is.

Trials would build it themselves, one of them while the others wait: here the user sees it. On a cluster this fills the
cache of one machine; the others copy its cache epochs, or build their own with their first trial.
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

from lowrank.compression.substitution import build_student
from lowrank.compression.trace import network_plan
from lowrank.errors import InfeasibleError
from lowrank.networks.registry import NetworkSettings
from lowrank.utils.atomic_write import write_text
from sweeps.resources.shares import Share
from sweeps.search.search import Search
from sweeps.space.study_config import StudyConfig
from sweeps.space.teacher_settings import SEARCHABLE_FIELD, TEACHER_SECTION, TEACHER_WEIGHTS
from sweeps.teachers.worker import CacheOptions, cache_epochs_of, make_teacher
from sweeps.trials.feasibility import corner_points
from sweeps.utils.signals import raise_if_interrupted

PROGRESS_FILE = "teacher_cache.json"  # in the study's folder while a cache is being built
POLL_SECONDS = 0.3


def wanted(search: Search) -> list[dict[str, Any]]:
    """A specification for each different cache that the search's students read, each with the most views."""
    found: dict[str, dict[str, Any]] = {}
    for specification in _specifications(search):
        if TEACHER_SECTION not in specification:
            continue
        section = {key: value for key, value in specification[TEACHER_SECTION].items() if key != SEARCHABLE_FIELD}
        key = json.dumps([section, specification["network"], specification["views"]], sort_keys=True)
        if key not in found or cache_epochs_of(found[key]) < cache_epochs_of(specification):
            found[key] = specification
    return list(found.values())


def _specifications(search: Search) -> Iterator[dict[str, Any]]:
    """Of the trials that wait, and of the space's points at which the teacher is asked most."""
    yield from (trial.specification for trial in search.waiting)
    space = search.space
    grid = space.search.sampler == "grid"
    corners = [point for each in search.strata for point in corner_points(space, each)]
    points = search.resolver.points.grid() if grid else corners
    for point in points:
        asked = {}
        for name in (f"train.{weight}" for weight in TEACHER_WEIGHTS):
            if name in point and not grid:
                asked[name] = max(float(value or 0) for value in space.domains[name].corners())
        try:
            yield search.resolver.resolve({**point, **asked}).specification
        except InfeasibleError:
            continue


def build_caches(
    search: Search, options: CacheOptions, setting: StudyConfig, share: Share, console: Console | None = None
) -> None:
    """Fill every cache that the search needs; one that cannot be filled is said, and the live teacher is asked."""
    if options.root is None:
        return
    console = console or Console()
    for specification in wanted(search):
        config = {
            "specification": specification, "cache": options.to_config(), "gpus": share.gpus, "cpus": share.cpus,
            "data_dir": str(setting.data_dir) if setting.data_dir else None,
            "progress": str(setting.folder / PROGRESS_FILE),
        }  # fmt: skip
        task = ray.remote(_fill).options(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=1).remote(config)
        try:
            for line in _watched(task, setting.folder / PROGRESS_FILE, cache_epochs_of(specification), console):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            console.print(f"no teacher cache yet: {reason}", markup=False, highlight=False, soft_wrap=True)
        finally:
            (setting.folder / PROGRESS_FILE).unlink(missing_ok=True)


def _watched(task: Any, path: Path, cache_epochs: int, console: Console) -> list[str]:
    """Show the progress of a running task until it ends; what it has to say. A Ctrl-C ends the task too."""
    columns = (
        TextColumn("teacher cache"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("views"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
            bar = shown.add_task("", total=cache_epochs)
            while not ray.wait([task], timeout=POLL_SECONDS)[0]:
                raise_if_interrupted()
                if path.exists():
                    shown.update(bar, completed=json.loads(path.read_text())["built"])
        return list(ray.get(task))
    except KeyboardInterrupt:
        ray.cancel(task, force=True)
        raise


def _fill(config: dict[str, Any]) -> list[str]:
    """In a worker: fill the cache of a specification; returns what there is to tell."""
    from sweeps.cluster.devices import assigned_device
    from sweeps.trials.build import load_trial_data

    torch.set_num_threads(max(1, int(config["cpus"])))
    specification, device = config["specification"], assigned_device(config["gpus"])
    data = load_trial_data(specification, config["data_dir"])
    network = NetworkSettings(**specification["network"])
    plan = network_plan(network, data.image_shape, len(data.classes))
    sized = plan.sized(specification["method"], specification.get("allocation"))
    student = build_student(network, plan, sized, data.image_shape, len(data.classes), seed=0)
    told: list[str] = []
    path = Path(config["progress"])

    def on_epoch_cached(cache_epoch: int) -> None:
        write_text(path, json.dumps({"built": cache_epoch + 1}))

    make_teacher(specification, data, student, device, CacheOptions(**config["cache"]), told.append, on_epoch_cached)
    return told
