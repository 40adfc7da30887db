"""Trains a teacher with the students' own loop, on the same training split; goes on after a kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowrank.data import ImageData
from lowrank.distillation.teacher_files import WEIGHTS_FILE, TeacherRecord, file_hash
from lowrank.errors import InputError
from lowrank.io.model_file import save_model
from lowrank.io.tensor_file import load_tensors, save_tensors
from lowrank.layers.registry import make_method
from lowrank.networks.registry import NetworkSettings
from lowrank.training.trainer import Trainer
from sweeps.records.names import CHECKPOINT_FILE
from sweeps.records.specification import Trial
from sweeps.teachers.registry import keep, reserved
from sweeps.trials.build import make_trainer
from sweeps.utils.provenance import command, commit, hardware, versions

CHECKPOINT_SECONDS = 10.0  # at most this much training (or an epoch, if longer) is repeated after a kill

OnEpoch = Callable[[int, dict[str, float]], None]  # epochs done, metrics of the last


@dataclass
class Training:
    """A teacher in the making: its trainer, the metrics of the epochs done, and where its checkpoint lies."""

    trial: Trial
    trainer: Trainer
    path: Path
    history: list[dict[str, float]]

    @property
    def epochs(self) -> int:
        """How many it is trained."""
        return self.trainer.recipe.epochs

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        about = {"trial_id": self.trial.trial_id, "history": json.dumps(self.history)}
        save_tensors(self.path, self.trainer.state(), about)

    def load(self) -> bool:
        """Take up the checkpoint, if there is one that is whole."""
        if not self.path.exists():
            return False
        try:
            state, about = load_tensors(self.path, self.trainer.device)
            self.trainer.load_state(state)
            self.history = json.loads(about["history"])
        except (InputError, RuntimeError, KeyError) as error:
            raise InputError(f"the checkpoint {self.path} cannot be used ({error}); remove it to start anew") from error
        return True


def train_teacher(
    trial: Trial, data: ImageData, root: Path, name: str, device: str, *, on_epoch: OnEpoch,
    on_start: Callable[[int], None] = lambda epoch: None,
) -> TeacherRecord:  # fmt: skip
    """Train, evaluate on the test split once, and keep the teacher in `root`; returns its record.

    The same call goes on where an earlier one was killed. `on_start` is told how many epochs are done.

    Raises:
        InputError: the name is taken, or another process trains it.
        DivergedError: the loss left the finite numbers.
    """
    with reserved(root, name) as unfinished:
        folder = unfinished / f"{name}-{trial.trial_id}"
        training = Training(trial, make_trainer(trial.specification, data, device), folder / CHECKPOINT_FILE, [])
        training.load()
        on_start(training.trainer.epoch)
        _train(training, on_epoch)
        record = _finish(training, data, root, name)
        shutil.rmtree(folder)
    return record


def _train(training: Training, on_epoch: OnEpoch) -> None:
    saved = time.monotonic()
    while training.trainer.epoch < training.epochs:
        training.history.append(training.trainer.train_epoch())
        on_epoch(training.trainer.epoch, training.history[-1])
        if training.trainer.epoch == training.epochs or time.monotonic() - saved > CHECKPOINT_SECONDS:
            training.save()
            saved = time.monotonic()


def _finish(training: Training, data: ImageData, root: Path, name: str) -> TeacherRecord:
    specification = training.trial.specification
    network = NetworkSettings(**specification["network"])
    method = make_method(specification["method"])
    weights, trained = training.path.with_name(WEIGHTS_FILE), training.trainer.weights()
    training.trainer.network.load_state_dict(
        {key.removeprefix("network."): value for key, value in trained.items() if key != "epoch"}
    )
    save_model(
        weights, training.trainer.network, network=network, method=method, image_shape=data.image_shape,
        classes=len(data.classes),
    )  # fmt: skip
    record = TeacherRecord(
        name=name, **_about(specification), params=training.trial.counts["params"], image_shape=data.image_shape,
        classes=len(data.classes), specification_id=training.trial.trial_id,
        val_error=training.history[-1]["val_error"], val_loss=training.history[-1]["val_loss"],
        test_error=training.trainer.evaluate("test")["error"], sha256=file_hash(weights),
        seconds=sum(epoch["epoch_seconds"] for epoch in training.history),
        registered_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command(), commit=commit(), versions=versions(),
        hardware=hardware(),
    )  # fmt: skip
    keep(root, record, weights, training.history)
    return record


def _about(specification: dict[str, Any]) -> dict[str, Any]:
    """The sections that a record keeps."""
    return {key: specification[key] for key in ("network", "method", "data", "train", "views", "seed")}
