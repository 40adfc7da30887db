"""Trains a teacher with the students' own loop, on the same training split; resumes after a kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowrank.data import ImageData
from lowrank.distillation import WEIGHTS_FILE, TeacherRecord
from lowrank.errors import InputError
from lowrank.io import load_tensors, save_tensors, write_model
from lowrank.training import Trainer
from lowrank.utils import commit, file_hash
from sweeps.records import CHECKPOINT_FILE, Trial, TrialSpec
from sweeps.teachers.registry import reserve_name, store_teacher
from sweeps.trials import make_trainer
from sweeps.utils import command, hardware, versions

CHECKPOINT_SECONDS = 10.0  # at most this much training (or an epoch, if longer) is repeated after a kill

OnEpoch = Callable[[int, dict[str, float]], None]  # takes the number of epochs done and the last one's metrics


@dataclass
class _Training:
    """A teacher's training: its trainer, the metrics of the epochs done, and the path of its checkpoint."""

    trial: Trial
    trainer: Trainer
    path: Path
    history: list[dict[str, float]]

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return self.trainer.recipe.epochs

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        metadata = {"trial_id": self.trial.trial_id, "history": json.dumps(self.history)}
        save_tensors(self.path, self.trainer.state(), metadata)

    def load(self) -> None:
        """Continue from the checkpoint, if there is one; raises InputError if it is damaged."""
        if not self.path.exists():
            return
        try:
            state, metadata = load_tensors(self.path, self.trainer.device)
            self.trainer.load_state(state)
            self.history = json.loads(metadata["history"])
        except (InputError, RuntimeError, KeyError) as error:
            raise InputError(f"the checkpoint {self.path} cannot be used ({error}); remove it to start anew") from error


def train_teacher(
    trial: Trial, data: ImageData, root: Path, name: str, device: str, *, on_epoch: OnEpoch,
    on_start: Callable[[int], None] = lambda epoch: None,
) -> TeacherRecord:  # fmt: skip
    """Train a teacher, evaluate it once on the test split and store it; resumes where an earlier call was killed.

    Args:
        trial: what to train.
        data: its data set.
        root: folder of teachers.
        name: of the teacher.
        device: cpu or cuda.
        on_epoch: called after each epoch.
        on_start: called with the number of epochs that an earlier call has done.

    Returns:
        The teacher's record.

    Raises:
        InputError: the name is taken, another process trains it, or its checkpoint is damaged.
        DivergedError: a loss or a weight is not finite.
    """
    with reserve_name(root, name) as unfinished:
        folder = unfinished / f"{name}-{trial.trial_id}"
        training = _Training(trial, make_trainer(trial.specification, data, device), folder / CHECKPOINT_FILE, [])
        training.load()
        on_start(training.trainer.epoch)
        _train(training, on_epoch)
        record = _store(training, data, root, name)
        shutil.rmtree(folder)
    return record


def _train(training: _Training, on_epoch: OnEpoch) -> None:
    saved = time.monotonic()
    while training.trainer.epoch < training.epochs:
        training.history.append(training.trainer.train_epoch())
        on_epoch(training.trainer.epoch, training.history[-1])
        if training.trainer.epoch == training.epochs or time.monotonic() - saved > CHECKPOINT_SECONDS:
            training.save()
            saved = time.monotonic()


def _store(training: _Training, data: ImageData, root: Path, name: str) -> TeacherRecord:
    specification = training.trial.specification
    weights, tensors = training.path.with_name(WEIGHTS_FILE), training.trainer.weights()
    training.trainer.network.load_state_dict(
        {key.removeprefix("network."): value for key, value in tensors.items() if key != "epoch"}
    )
    model = specification.model(data.image_shape, len(data.classes))
    # Its hash, which is the same for equal weights, names the teacher
    write_model(weights, training.trainer.network, model, checksum=False)
    record = TeacherRecord(
        name=name, **_recorded_sections(specification), params=training.trial.counts["params"],
        image_shape=data.image_shape, classes=len(data.classes), specification_id=training.trial.trial_id,
        val_error=training.history[-1]["val_error"], val_loss=training.history[-1]["val_loss"],
        test_error=training.trainer.evaluate("test")["error"], sha256=file_hash(weights),
        seconds=sum(epoch["epoch_seconds"] for epoch in training.history),
        registered_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command(), commit=commit(), versions=versions(),
        hardware=hardware(),
    )  # fmt: skip
    store_teacher(root, record, weights, training.history, data)
    return record


def _recorded_sections(specification: TrialSpec) -> Mapping[str, Any]:
    """Return the sections of a specification that a record has."""
    sections: Mapping[str, Any] = specification.to_json()
    return {key: sections[key] for key in ("network", "method", "data", "train", "views", "seed")}
