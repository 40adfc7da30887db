"""The thin adapter between Ray Tune and the training loop; one worker process runs many trials.

Data sets and imports stay in the process from trial to trial. Checkpoints lie under the study by the trial's own id
and are found here, so that nothing leans on Ray's state.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import nn

from lowrank.checkpoints import kept_files, load_tensors, save_tensors
from lowrank.data import DataSettings, ImageData, ViewSettings, load_data
from lowrank.distill import Teacher
from lowrank.errors import InputError, LoaderHungError
from lowrank.methods import make_method
from lowrank.networks import NetworkSettings
from lowrank.plan import network_plan
from lowrank.recipes import Recipe
from lowrank.substitute import build_student
from lowrank.training import DivergedError, Trainer
from sweeps.records import VAL_ERROR, Status
from sweeps.relay import CheckpointPlace
from sweeps.starts import start_student
from sweeps.teaching import CacheOptions, make_teacher
from sweeps.worker import WorkerLostError, check_memory_is_back, device_lost, first_line, out_of_memory

KEPT = 2  # checkpoints of a trial, so that a damaged newest one costs little
CHECKPOINT_SECONDS = 30.0  # where the config does not say


def make_trainer(
    specification: dict[str, Any], data: ImageData, device: str,
    teach: Callable[[nn.Module], Teacher | None] = lambda student: None,
) -> Trainer:  # fmt: skip
    """The trainer that a specification describes, at its first epoch; `teach` finds the student's teacher."""
    settings = NetworkSettings(**specification["network"])
    recipe = Recipe(**specification["train"])
    plan = network_plan(settings, data.image_shape, len(data.classes))
    sized = plan.sized(specification["method"], specification.get("allocation"))
    seed = int(specification["seed"])
    network = build_student(settings, plan, sized, data.image_shape, len(data.classes), seed)
    section = specification.get("teacher") or {}
    return Trainer(
        network, data, recipe, views=ViewSettings(**specification["views"]), order_seed=seed,
        decay_ratio=plan.params(sized) / plan.params(make_method({"name": plan.base})), device=device,
        teacher=teach(network), taps=section.get("student_taps", ()), view_slots=section.get("views"),
    )  # fmt: skip


def load_trial_data(specification: dict[str, Any], data_dir: str | None) -> ImageData:
    """The trial's data set; raises InputError when this machine holds another than the study was started with."""
    fields = dict(specification["data"])
    expected = fields.pop("fingerprint")
    data = load_data(DataSettings(**fields), Path(data_dir) if data_dir else None)
    if data.fingerprint != expected:
        raise InputError(f"{data.name} here has the fingerprint {data.fingerprint}, but the study has {expected}")
    return data


class TrialTrainable(tune.Trainable):
    """Trains one specification, an epoch a step; `config` holds trial_id, specification, study_dir and data_dir."""

    failure: Exception | None = None  # what went wrong before the first step, which raises it
    attempt: dict[str, Any] | None = None

    def setup(self, config: dict[str, Any]) -> None:
        """Take up the trial. Ray never again starts a trial whose change of worker failed; one whose step failed, yes.

        So whatever goes wrong here is raised by the first step.
        """
        self.failure, self.attempt = None, None
        self.notices: list[str] = []  # what the user is to be told, with the next result
        self.history: list[dict[str, float]] = []  # metrics of the epochs done, so that a resumed curve has no gap
        try:
            self._begin(config)
        except Exception as error:
            self.failure = error

    def _begin(self, config: dict[str, Any]) -> None:
        started = time.perf_counter()
        cpus, gpus = self._resources()
        torch.set_num_threads(max(1, int(cpus)))
        self.place = CheckpointPlace(config["study_dir"], config["trial_id"], config.get("relay"))
        # Never a card that the trial was not given, even where one is visible
        self.device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        self.attempt = {
            "host": socket.gethostname(), "pid": os.getpid(), "device": self.device, "from_epoch": 0,
            "start_seconds": 0.0,
        }  # fmt: skip
        self._check_device()
        self.data = load_trial_data(config["specification"], config["data_dir"])
        self.trainer = self._make_trainer()
        self._load_checkpoint()
        if self.trainer.epoch == 0:
            self._start()
        self.saved_at = time.monotonic()
        self.attempt |= {"from_epoch": self.trainer.epoch, "start_seconds": time.perf_counter() - started}

    def _start(self) -> None:
        """Set the weights that the trial starts from, where they are not drawn anew."""
        config = self.config
        start_student(
            self.trainer.network, config["specification"], self.data, config["study_dir"], config.get("relay")
        )
        if self.trainer.average is not None:  # it was made of what was drawn
            self.trainer.average.load({})

    def _check_device(self) -> None:
        """Whether the trial before this one, if there was one, gave its memory back; raises WorkerLostError."""
        if self.device == "cuda" and "data" in self.__dict__:
            check_memory_is_back(self.data, torch.cuda.memory_allocated() / 1e6, torch.device(self.device))

    def _make_trainer(self) -> Trainer:
        specification, options = self.config["specification"], CacheOptions(**self.config.get("cache") or {})

        def teach(student: nn.Module) -> Teacher | None:
            return make_teacher(specification, self.data, student, self.device, options, self.notices.append)

        return make_trainer(specification, self.data, self.device, teach)

    def _resources(self) -> tuple[float, float]:
        """CPUs and GPUs that Ray gave to this trial."""
        given = self.trial_resources.required_resources if self.trial_resources else {}
        return float(given.get("CPU", 1)), float(given.get("GPU", 0))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process."""
        self.__dict__.pop("trainer", None)  # there is none where the last set-up failed
        self.failure = None  # its traceback holds on to what it was about
        gc.collect()
        gc.freeze()  # what is left are imports and data: walking them again took 0.2 s at every change of trial
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch; the result says when the trial has ended, and how."""
        result: dict[str, Any] = {"trial": self.config["trial_id"], "attempt": self.attempt}
        if self.attempt is not None:
            result["history"], self.attempt = list(self.history), None
        try:
            if self.failure is not None:
                raise self.failure
            if not self._trained():
                self.history.append(self._train_epoch())
        except LoaderHungError as error:
            raise WorkerLostError(str(error)) from error
        except DivergedError as error:
            return {**result, **_ended(Status.DIVERGED, str(error))}
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                return {**result, **_ended(Status.OUT_OF_MEMORY, first_line(error))}
            if device_lost(error):
                raise WorkerLostError(first_line(error)) from error
            raise
        result |= {"notices": list(self.notices)}
        self.notices.clear()
        result |= {"epoch": self.trainer.epoch, "metrics": self.history[-1], VAL_ERROR: self.history[-1][VAL_ERROR]}
        if self._trained():
            self._save_checkpoint()
            return {**result, **_ended(Status.COMPLETED, "")}
        if self._is_due(self.history[-1]["epoch_seconds"]):
            self._save_on_the_way()
        return result

    def _train_epoch(self) -> dict[str, float]:
        """One epoch. After one that failed the trainer is let go: its weights are of no epoch and must not be kept."""
        try:
            return self.trainer.train_epoch()
        except BaseException:
            del self.trainer
            raise

    def _is_due(self, epoch_seconds: float) -> bool:
        """Whether a kill in the next epoch, as long as the last, would cost more than it may."""
        allowed = self.config.get("checkpoint_seconds", CHECKPOINT_SECONDS)
        return time.monotonic() - self.saved_at + epoch_seconds > allowed

    def cleanup(self) -> None:
        """The worker is asked to go (an interrupted study): keep what has been trained."""
        if "trainer" in self.__dict__ and self.trainer.epoch > 0 and not self._trained():
            self._save_on_the_way()

    def _trained(self) -> bool:
        return self.trainer.epoch >= self.trainer.recipe.epochs

    def _save_on_the_way(self) -> None:
        """Save, if the disk has room: a trial needs its checkpoints only where it is interrupted."""
        try:
            self._save_checkpoint()
        except OSError as error:
            self.notices.append(f"no checkpoint after epoch {self.trainer.epoch}, the trial goes on: {error}")
            self.saved_at = time.monotonic()

    def _save_checkpoint(self) -> None:
        path = self.place.path
        state = self.trainer.weights() if self._trained() else self.trainer.state()
        about = {"trial_id": self.config["trial_id"], "history": json.dumps(self.history)}
        save_tensors(path, state, about, keep=KEPT)
        self.place.carry()
        if self._trained():  # only the newest weights are wanted from here on
            for older in kept_files(path)[1:]:
                older.unlink()
        self.saved_at = time.monotonic()

    def _load_checkpoint(self) -> None:
        """Go on from the newest checkpoint that is whole; without one from the beginning. Says which was not usable."""
        self.place.fetch()
        for path in kept_files(self.place.path):
            try:
                state, about = load_tensors(path, self.device)
                history = json.loads(about["history"])
                self.trainer.load_state(state)
            except (InputError, RuntimeError, KeyError, ValueError) as error:
                if out_of_memory(error) or device_lost(error):
                    raise
                self.notices.append(f"{path} is not usable, the trial goes on from what was before it: {error}")
                path.unlink()
                self.trainer = self._make_trainer()
            else:
                self.history = history
                return

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray's own checkpoints are not used."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Ray's own checkpoints are not used."""


def _ended(status: Status, reason: str) -> dict[str, Any]:
    return {"done": True, "outcome": str(status), "reason": reason}
