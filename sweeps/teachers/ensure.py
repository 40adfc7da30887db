"""A teacher is trained where the user sees it: by `sweeps/teacher.py`, or before a study whose space says how.

A space may name a teacher that is there, or say under `teacher.train` how it is trained. Such a teacher is trained
once, before the first study that asks for it, and kept like any other; without a name of its own it goes by its network
and the id of its training, so that another data set, split or recipe is another teacher.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowrank.data import ImageData
from lowrank.distillation.teacher_files import TeacherRecord
from lowrank.errors import InputError
from sweeps.records.study_folders import check_studies_folder
from sweeps.space.model import Space
from sweeps.space.parse import teacher_space
from sweeps.teachers.registry import default_uri, register
from sweeps.tracking.process import redact
from sweeps.trials.feasibility import reachable_strata
from sweeps.trials.planned_teacher import UNTRAINED, describe_teacher, with_teacher_name
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import ResolvedTeacher, resolve_teacher


def ensure_teacher(space: Space, data: ImageData, root: Path, uri: str | None = None) -> ResolvedTeacher | None:
    """The teacher of a space, trained now where the space says how and it is not there yet; None where it has none.

    Args:
        space: with a teacher or without.
        data: of students and teacher.
        root: folder of teachers.
        uri: of the MLflow store whose model registry gets it; None for the one beside the teachers.

    Raises:
        InputError: as `resolve_teacher` does, or the space cannot be searched: said before minutes of training.
        DivergedError: the training did.
    """
    planned = describe_teacher(space, data, root)
    if planned is None or planned.found.sha256 != UNTRAINED:
        return planned
    reachable_strata(space, Resolver(space, data, planned))
    own = teacher_space(space)
    print(f"the teacher {planned.name} is not there yet and is trained first", flush=True)
    train_shown(own, data, check_studies_folder(root), planned.name, "cuda" if torch.cuda.is_available() else "cpu")
    register_shown(root, planned.name, uri)
    return resolve_teacher(with_teacher_name(space, data), data, root)


def train_shown(space: Space, data: ImageData, root: Path, name: str, device: str) -> TeacherRecord:
    """Train the one point of `space` as the teacher `name`, with a line an epoch; see `train_teacher`."""
    trial = Resolver(space, data).resolve({})
    # Ray's imports, which the trainer's room brings, are only paid for once the input has been checked
    from sweeps.teachers.train import train_teacher

    print(f"{name}: {space.network.name}, {trial.counts['params']:,} parameters, on {data.name} "
          f"({len(data.train):,} training images), {space.epochs} epochs on {device}", flush=True)  # fmt: skip
    with _Shown(space.epochs) as shown:
        record = train_teacher(trial, data, root, name, device, on_epoch=shown.epoch, on_start=shown.start)
    print(f"{name}: validation error {record.val_error:.2f} %, test error {record.test_error:.2f} %, "
          f"{record.params:,} parameters, {record.seconds:.0f} s; in {root / name}", flush=True)  # fmt: skip
    return record


def register_shown(root: Path, name: str, uri: str | None) -> None:
    """A registry that does not answer loses nothing: the teacher is in its folder. Raises InputError."""
    uri = uri or default_uri(root)
    again = f"python sweeps/teacher.py --register {name}"
    try:
        print(f"{register(root, name, uri)} ({redact(uri)})")
    except InputError as error:
        raise InputError(f"{error}; the teacher itself is kept and can be used") from error
    except OSError as error:
        print(f"not in MLflow's model registry: {error}; the teacher itself is kept and can be used; later: {again}")


class _Shown:
    """A line an epoch, and on a terminal a bar with the time left below them."""

    def __init__(self, epochs: int):
        self._console, self._epochs = Console(), epochs
        columns = (TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=epochs)
        self._began = time.monotonic()
        self._first = 0

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def start(self, epoch: int) -> None:
        """So many epochs were done before."""
        self._began, self._first = time.monotonic(), epoch
        self._bar.update(self._task, completed=epoch)
        if epoch:
            self._print(f"goes on after epoch {epoch}")

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch was done."""
        pace = (time.monotonic() - self._began) / (epoch - self._first)
        self._bar.update(self._task, completed=epoch)
        self._print(
            f"epoch {epoch}/{self._epochs}: training loss {metrics['train_loss']:.4f}, validation loss "
            f"{metrics['val_loss']:.4f}, error {metrics['val_error']:.2f} %; {metrics['images_per_second']:,.0f} "
            f"images/s, about {pace * (self._epochs - epoch):.0f} s left"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
