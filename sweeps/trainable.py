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
from pathlib import Path
from typing import Any

import torch
from ray import tune

from lowrank.checkpoints import load_tensors, save_tensors
from lowrank.data import DataSettings, ImageData, ViewSettings, load_data
from lowrank.errors import InputError
from lowrank.methods import make_method
from lowrank.networks import NetworkSettings
from lowrank.plan import network_plan
from lowrank.recipes import Recipe
from lowrank.substitute import build_student
from lowrank.training import DivergedError, Trainer
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER, VAL_ERROR, Status
from sweeps.starts import start_student

CHECKPOINT_SECONDS = 30.0  # at most this much training (or an epoch, if longer) is repeated after a kill


def make_trainer(specification: dict[str, Any], data: ImageData, device: str) -> Trainer:
    """The trainer that a specification describes, at its first epoch."""
    settings = NetworkSettings(**specification["network"])
    recipe = Recipe(**specification["train"])
    plan = network_plan(settings, data.image_shape, len(data.classes))
    sized = plan.sized(specification["method"], specification.get("allocation"))
    seed = int(specification["seed"])
    network = build_student(settings, plan, sized, data.image_shape, len(data.classes), seed)
    return Trainer(
        network, data, recipe, views=ViewSettings(**specification["views"]), order_seed=seed,
        decay_ratio=plan.params(sized) / plan.params(make_method({"name": plan.base})), device=device,
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

    def setup(self, config: dict[str, Any]) -> None:
        started = time.perf_counter()
        cpus, gpus = self._resources()
        torch.set_num_threads(max(1, int(cpus)))
        self.folder = Path(config["study_dir"]) / TRIALS_FOLDER / config["trial_id"]
        # Never a card that the trial was not given, even where one is visible
        self.device = "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
        data = load_trial_data(config["specification"], config["data_dir"])
        self.trainer = make_trainer(config["specification"], data, self.device)
        self.history: list[dict[str, float]] = []  # metrics of the epochs done, so that a resumed curve has no gap
        self._load_checkpoint()
        if self.trainer.epoch == 0:
            start_student(self.trainer.network, config["specification"], data, Path(config["study_dir"]))
        self.saved_at = time.monotonic()
        self.attempt: dict[str, Any] | None = {
            "host": socket.gethostname(), "pid": os.getpid(), "device": self.device,
            "from_epoch": self.trainer.epoch, "start_seconds": time.perf_counter() - started,
        }  # fmt: skip

    def _resources(self) -> tuple[float, float]:
        """CPUs and GPUs that Ray gave to this trial."""
        given = self.trial_resources.required_resources if self.trial_resources else {}
        return float(given.get("CPU", 1)), float(given.get("GPU", 0))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process."""
        self.__dict__.pop("trainer", None)  # there is none where the last set-up failed
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
            if not self._trained():
                self.history.append(self.trainer.train_epoch())
        except DivergedError as error:
            return {**result, **_ended(Status.DIVERGED, str(error))}
        except torch.OutOfMemoryError as error:
            return {**result, **_ended(Status.OUT_OF_MEMORY, str(error).splitlines()[0])}
        result |= {"epoch": self.trainer.epoch, "metrics": self.history[-1], VAL_ERROR: self.history[-1][VAL_ERROR]}
        if self._trained():
            self._save_checkpoint()
            return {**result, **_ended(Status.COMPLETED, "")}
        if time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
            self._save_checkpoint()
        return result

    def cleanup(self) -> None:
        """The worker is asked to go (an interrupted study): keep what has been trained."""
        if "trainer" in self.__dict__ and self.trainer.epoch > 0 and not self._trained():
            self._save_checkpoint()

    def _trained(self) -> bool:
        return self.trainer.epoch >= self.trainer.recipe.epochs

    def _save_checkpoint(self) -> None:
        state = self.trainer.state()
        if self._trained():  # only the weights are wanted from here on
            state = {name: tensor for name, tensor in state.items() if not name.startswith("momentum.")}
        about = {"trial_id": self.config["trial_id"], "history": json.dumps(self.history)}
        save_tensors(self.folder / CHECKPOINT_FILE, state, about)
        self.saved_at = time.monotonic()

    def _load_checkpoint(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return
        try:
            state, about = load_tensors(path, self.device)
            self.trainer.load_state(state)
            self.history = json.loads(about["history"])
        except (InputError, RuntimeError, KeyError) as error:  # start again from the beginning, and say so
            print(f"{path} is not usable, the trial starts again: {error}", flush=True)
            path.unlink()
            self.trainer = make_trainer(self.config["specification"], self.trainer.data, self.device)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray's own checkpoints are not used."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Ray's own checkpoints are not used."""


def _ended(status: Status, reason: str) -> dict[str, Any]:
    return {"done": True, "outcome": str(status), "reason": reason}
