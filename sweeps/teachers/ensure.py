"""Trains a missing teacher where the user sees it: for `sweeps/teacher.py`, or before a study whose space says how.

A space names a teacher that exists, or says under `teacher.train` how it is trained. Such a teacher is trained once,
before the first study that needs it. Without a name in the space it is named after its network and the id of its
training, so that another data set, split or recipe makes another teacher.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowrank.data import ImageData
from lowrank.distillation import TeacherRecord
from lowrank.errors import InputError
from lowrank.utils import format_counted, redact
from sweeps.records import check_studies_folder
from sweeps.space import Space, teacher_space
from sweeps.teachers.registry import default_uri, register
from sweeps.teachers.train import train_teacher
from sweeps.trials import (
    UNTRAINED,
    ResolvedTeacher,
    Resolver,
    describe_teacher,
    reachable_strata,
    resolve_teacher,
    with_teacher_name,
)


def ensure_teacher(space: Space, data: ImageData, root: Path, uri: str | None = None) -> ResolvedTeacher | None:
    """Return the teacher of a space, trained now if it is missing.

    Args:
        space: with a teacher or without.
        data: of students and teacher.
        root: folder of teachers.
        uri: of the MLflow store whose model registry gets it; None for the one beside the teachers.

    Returns:
        The teacher; None if the space has none.

    Raises:
        InputError: the teacher cannot be used (see `resolve_teacher`), or the space cannot be searched, which is
            checked before minutes of training.
        DivergedError: the training of the teacher diverged.
    """
    planned = describe_teacher(space, data, root)
    if planned is None or planned.weights.sha256 != UNTRAINED:
        return planned
    reachable_strata(space, Resolver(space, data, planned))
    training = teacher_space(space)
    print(f"the teacher {planned.name} is not there yet and is trained first", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_with_progress(training, data, check_studies_folder(root), planned.name, device)
    register_or_explain(root, planned.name, uri)
    return resolve_teacher(with_teacher_name(space, data), data, root)


def train_with_progress(space: Space, data: ImageData, root: Path, name: str, device: str) -> TeacherRecord:
    """Train a teacher and print a line for each epoch; see `train_teacher`.

    Args:
        space: with one value of each field.
        data: of students and teacher.
        root: folder of teachers.
        name: of the teacher.
        device: cpu or cuda.

    Returns:
        The teacher's record.

    Raises:
        InputError: the name is taken, or another process trains it.
        DivergedError: a loss or a weight is not finite.
    """
    trial = Resolver(space, data).resolve({})
    print(f"{name}: {space.network.name}, {trial.counts['params']:,} parameters, on {data.name} "
          f"({len(data.train):,} training images), {format_counted(space.epochs, 'epoch')} on {device}",
          flush=True)  # fmt: skip
    with _EpochLines(space.epochs) as lines:
        record = train_teacher(trial, data, root, name, device, on_epoch=lines.epoch, on_start=lines.start)
    print(f"{name}: validation error {record.val_error:.2f} %, test error {record.test_error:.2f} %, "
          f"{record.params:,} parameters, {record.seconds:.0f} s; in {root / name}", flush=True)  # fmt: skip
    return record


def register_or_explain(root: Path, name: str, uri: str | None) -> None:
    """Register a teacher in MLflow; print what was done, or how to do it later.

    Args:
        root: folder of teachers.
        name: of the teacher, which stays usable whatever happens here.
        uri: of the MLflow store; None for the one beside the teachers.

    Raises:
        InputError: the weights are damaged, or the registry has other weights under this name.
    """
    uri = uri or default_uri(root)
    command = f"python sweeps/teacher.py --register {shlex.quote(name)}"
    try:
        print(f"{register(root, name, uri)} ({redact(uri)})")
    except InputError as error:
        raise InputError(f"{error}; the teacher itself is kept and can be used") from error
    except OSError as error:
        print(f"not in MLflow's model registry: {error}; the teacher itself is kept and can be used; later: {command}")


class _EpochLines:
    """Prints a line for each epoch and, on a terminal, a bar with the time left below them."""

    def __init__(self, epochs: int):
        self._console, self._epochs = Console(), epochs
        columns = (TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=epochs)
        self._started_at = time.monotonic()
        self._first_epoch = 0

    def __enter__(self) -> _EpochLines:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def start(self, epoch: int) -> None:
        """Begin after so many epochs that were trained before."""
        self._started_at, self._first_epoch = time.monotonic(), epoch
        self._bar.update(self._task, completed=epoch)
        if epoch:
            self._print(f"goes on after epoch {epoch}")

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Print the metrics of an epoch."""
        pace = (time.monotonic() - self._started_at) / (epoch - self._first_epoch)
        self._bar.update(self._task, completed=epoch)
        self._print(
            f"epoch {epoch}/{self._epochs}: training loss {metrics['train_loss']:.4f}, validation loss "
            f"{metrics['val_loss']:.4f}, error {metrics['val_error']:.2f} %; {metrics['images_per_second']:,.0f} "
            f"images/s, about {pace * (self._epochs - epoch):.0f} s left"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
