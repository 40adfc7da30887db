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
from typing import Any

import torch
from ray import tune
from torch import nn

from lowrank.distillation.teacher import Teacher
from lowrank.errors import InputError, LoaderHungError
from lowrank.io.tensor_file import load_tensors, save_tensors, saved_versions
from lowrank.training.divergence import DivergedError
from lowrank.training.trainer import Trainer
from lowrank.utils.text import first_line
from sweeps.cluster.devices import assigned_device, limit_memory, out_of_memory
from sweeps.cluster.ray_adapter import assigned_cards, assigned_resources
from sweeps.execution.checkpoint_relay import CheckpointPlace
from sweeps.execution.initial_weights import start_student
from sweeps.execution.process_group import ProcessGroup
from sweeps.execution.worker_errors import WorkerLostError, check_memory_is_back, device_lost
from sweeps.records.events import Status
from sweeps.records.names import VAL_ERROR
from sweeps.resources.mps import PROCESSES, set_mps_environment
from sweeps.teachers.worker import CacheOptions, make_teacher
from sweeps.trials.build import load_trial_data, make_student, make_trainer

KEPT = 2  # checkpoints of a trial, so that a damaged newest one costs little
CHECKPOINT_SECONDS = 30.0  # where the config does not say


class TrialTrainable(tune.Trainable):
    """Trains one specification, an epoch a step; `config` holds trial_id, specification, study_dir and data_dir."""

    failure: Exception | None = None  # what went wrong before the first step, which raises it
    attempt: dict[str, Any] | None = None
    process_group: ProcessGroup | None = None  # processes that train together; they stay from trial to trial
    trainer: Trainer | ProcessGroup

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
        cpus, gpus = assigned_resources(self)
        processes = int(config.get("processes", 1))
        sharing, environment = config.get("sharing", (PROCESSES, {}))
        set_mps_environment(environment)
        self.threads = max(1, int(cpus / processes))
        torch.set_num_threads(self.threads)
        self.place = CheckpointPlace(config["study_dir"], config["trial_id"], config.get("relay"))
        self.attempt = {
            "host": socket.gethostname(), "pid": os.getpid(), "device": "cuda" if gpus else "cpu", "from_epoch": 0,
            "start_seconds": 0.0, "cpus": cpus, "gpus": gpus, "processes": processes,
            **({"sharing": sharing} if 0 < gpus < 1 else {}),
        }  # fmt: skip
        cards = assigned_cards()
        if cards:
            self.attempt["cards"] = [str(card) for card in cards]
        self.device = assigned_device(gpus, cards)
        if self.device == "cuda" and processes == 1:
            limit_memory(gpus)
        self._check_device()
        self.data = load_trial_data(config["specification"], config["data_dir"])
        self.trainer = self._make_trainer()
        self.epochs = int(config["specification"]["train"]["epochs"])
        self._load_checkpoint()
        if self.trainer.epoch == 0:
            self._start()
        self.saved_at = time.monotonic()
        self.left_at = time.perf_counter()
        self.attempt |= {"from_epoch": self.trainer.epoch, "start_seconds": self.left_at - started}

    def _start(self) -> None:
        """Set the weights that the trial starts from, where they are not drawn anew."""
        config = self.config
        specification = config["specification"]
        if "start" not in specification:
            return
        if isinstance(self.trainer, ProcessGroup):
            network, _ = make_student(specification, self.data)
        else:
            network = self.trainer.network
        start_student(network, specification, self.data, config["study_dir"], config.get("relay"))
        if isinstance(self.trainer, ProcessGroup):
            self.trainer.start_from(network.state_dict())
        else:
            self.trainer.restart_average()  # it was made of what was drawn

    def _check_device(self) -> None:
        """Whether the trial before this one, if there was one, gave its memory back; raises WorkerLostError."""
        if self.process_group is not None:  # its processes check it themselves
            return
        if self.device == "cuda" and "data" in self.__dict__:
            check_memory_is_back(self.data, torch.cuda.memory_allocated() / 1e6, torch.device(self.device))

    def _make_trainer(self) -> Trainer | ProcessGroup:
        specification, cache = self.config["specification"], self.config.get("cache") or {}
        processes, options = int(self.config.get("processes", 1)), CacheOptions(**cache)
        if processes > 1:
            return self._make_process_group(processes, cache)

        def teach(student: nn.Module) -> Teacher | None:
            return make_teacher(specification, self.data, student, self.device, options, self.notices.append)

        return make_trainer(specification, self.data, self.device, teach, say=self.notices.append)

    def _make_process_group(self, processes: int, cache: dict[str, Any]) -> ProcessGroup:
        """The process group of the last trial if it still runs, else a new one."""
        if self.process_group is None or not self.process_group.alive:
            self.process_group = ProcessGroup(processes, self.device, self.threads)
        self.process_group.build(self.config["specification"], self.config["data_dir"], cache, self.notices.append)
        return self.process_group

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
        """One epoch. After one that failed the trainer is let go: its weights are of no epoch and must not be kept.

        `report_seconds` is what came between the epoch before (or the set-up) and this one: checkpoint, report, turn.
        """
        between = time.perf_counter() - self.left_at
        try:
            metrics = self.trainer.train_epoch()
        except BaseException:
            del self.trainer
            raise
        self.left_at = time.perf_counter()
        return metrics | {"report_seconds": between}

    def _is_due(self, epoch_seconds: float) -> bool:
        """Whether a kill in the next epoch, as long as the last, would cost more than it may."""
        allowed = self.config.get("checkpoint_seconds", CHECKPOINT_SECONDS)
        return time.monotonic() - self.saved_at + epoch_seconds > allowed

    def cleanup(self) -> None:
        """The worker is asked to go (an interrupted study): keep what has been trained."""
        ended = isinstance(trainer := self.__dict__.get("trainer"), ProcessGroup) and not trainer.alive
        if trainer is not None and not ended and trainer.epoch > 0 and not self._trained():
            self._save_on_the_way()
        if self.process_group is not None:
            self.process_group.close()

    def _trained(self) -> bool:
        return self.trainer.epoch >= self.epochs

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
            for older in saved_versions(path)[1:]:
                older.unlink()
        self.saved_at = time.monotonic()

    def _load_checkpoint(self) -> None:
        """Go on from the newest checkpoint that is whole; without one from the beginning. Says which was not usable."""
        self.place.fetch()
        for path in saved_versions(self.place.path):
            try:
                state, about = load_tensors(path, "cpu" if isinstance(self.trainer, ProcessGroup) else self.device)
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
