"""The adapter between Ray Tune and the training loop; one worker process runs many trials.

Data sets and imports stay in the process from trial to trial. Checkpoints lie under the study by the trial's own id,
and trials find them there, so that nothing depends on Ray's state.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune

from lowrank.compression import Budget
from lowrank.distillation import Teacher
from lowrank.errors import InputError, LoaderHungError
from lowrank.io import load_tensors, remove_set_aside, save_tensors, saved_versions
from lowrank.layers import Bayesian
from lowrank.training import (
    DivergedError,
    Trainer,
    begin_compiler_import,
    compress_posterior,
    free_memory,
    mixed_precision_error,
    number_format,
    recorded_names,
)
from lowrank.utils import describe_error, first_line
from sweeps.cluster import assigned_cards, assigned_device, assigned_resources, device_lost, limit_memory, out_of_memory
from sweeps.execution.checkpoint_relay import CheckpointLocation
from sweeps.execution.initial_weights import set_initial_weights
from sweeps.execution.process_group import ProcessGroup
from sweeps.execution.trial_config import trial_config
from sweeps.execution.worker_errors import NetworkFailedError, WorkerLostError, check_memory_is_back, comes_again
from sweeps.records import (
    FULL_ERROR,
    MACHINE_METRICS,
    POSTERIORS_FOLDER,
    VAL_ERROR,
    EventFields,
    Status,
    encode_wrong_images,
)
from sweeps.teachers import make_teacher
from sweeps.trials import load_trial_data, make_student, make_trainer, variational_settings, without_teacher

LOST = "lost"  # key of a result: why the processes that trained the trial cannot go on
MAX_CHECKPOINTS = 2  # of a trial, so that a damaged newest one costs little


class TrialTrainable(tune.Trainable):
    """Trains one specification, an epoch a step."""

    failure: Exception | None = None  # of the set-up; the first step raises it
    attempt: EventFields | None = None  # for the first result
    process_group: ProcessGroup | None = None  # of a trial of several processes; the next trial uses it again
    trainer: Trainer | ProcessGroup

    def setup(self, config: dict[str, Any]) -> None:
        """Begin a trial; an exception is stored, and the first `step` raises it.

        Ray Tune does not retry a trial whose `reset_config` fails, but does retry one whose `step` fails.

        Args:
            config: as `TrialConfig.to_tune` makes it.
        """
        self.trial = trial_config(config)
        self.failure, self.attempt = None, None
        self.notices: list[str] = []  # for the user, with the next result
        self.history: list[dict[str, float]] = []  # metrics of all epochs done, so that a resumed curve has no gap
        self.wrong_images = ""  # of the validation split after the last epoch, for the record; empty: not known
        self.removed: EventFields = {}  # of variational layers: what is left of them after the training
        self.initial: EventFields = {}  # of a start from trained weights: error and layers before any training
        try:
            self._begin()
        except Exception as error:
            self.failure = error

    def _begin(self) -> None:
        started = time.perf_counter()
        trial, (cpus, gpus) = self.trial, assigned_resources(self)
        gpus = gpus if trial.card_share is None else trial.card_share
        processes, (sharing, environment) = trial.processes, trial.sharing
        os.environ.update(environment)  # before this process first uses the card
        self.threads = max(1, int(cpus / processes))
        torch.set_num_threads(self.threads)
        self.checkpoint_location = CheckpointLocation(trial.study_dir, trial.trial_id, trial.relay)
        self.attempt = {
            "host": socket.gethostname(), "pid": os.getpid(), "device": "cuda" if gpus else "cpu", "from_epoch": 0,
            "start_seconds": 0.0, "cpus": cpus, "gpus": gpus, "processes": processes,
            **({"sharing": sharing} if 0 < gpus < 1 else {}),
        }  # fmt: skip
        cards = assigned_cards()
        if cards:
            self.attempt["cards"] = [str(card) for card in cards]
        self.device = assigned_device(gpus, cards)
        self.attempt["precision"] = number_format(trial.specification.train, torch.device(self.device))
        if self.device == "cuda" and processes == 1:
            limit_memory(gpus)
            self.attempt["card_mb"] = torch.cuda.get_device_properties(0).total_memory / 1e6
        self._check_device()
        if trial.specification.train.engine == "compiled":
            begin_compiler_import()
        if processes > 1:
            self._start_process_group()  # its processes import and connect while this one loads the data
        self.data = load_trial_data(trial.specification, trial.data_dir)
        self.trainer = self._make_trainer()
        self.epochs = trial.specification.train.epochs
        self._load_checkpoint()
        if self.trainer.epoch == 0 and not self.initial:
            self._set_initial_weights()
        self._take_shared_posterior()
        self.saved_at = time.monotonic()
        self.epoch_ended_at = time.perf_counter()
        self.attempt |= {"from_epoch": self.trainer.epoch, "start_seconds": self.epoch_ended_at - started}

    def _set_initial_weights(self) -> None:
        """Replace the weights that were drawn, if the specification says by which."""
        specification = self.trial.specification
        if specification.start is None:
            return
        began = time.perf_counter()
        if isinstance(self.trainer, ProcessGroup):
            network, _ = make_student(specification, self.data)
        else:
            network = self.trainer.network
        layers = set_initial_weights(network, specification, self.data, self.trial.study_dir, self.trial.relay)
        if isinstance(self.trainer, ProcessGroup):
            self.trainer.start_from(network.state_dict())
        else:
            self.trainer.restart_average()  # it began with the weights that were drawn
        measured = self.trainer.evaluate("val")
        self.initial = {
            VAL_ERROR: measured["error"], "val_loss": measured["loss"], "layers": layers,
            "seconds": time.perf_counter() - began,
        }  # fmt: skip

    def _check_device(self) -> None:
        """Check that the last trial, if there was one, gave its memory back; raises WorkerLostError."""
        if self.process_group is not None:  # its processes check it themselves
            return
        if self.device == "cuda" and "data" in self.__dict__:
            check_memory_is_back(self.data, torch.cuda.memory_allocated() / 1e6, torch.device(self.device))

    def _make_trainer(self) -> Trainer | ProcessGroup:
        specification, cache = self.trial.specification, self.trial.cache
        if self.process_group is not None:
            return self._build_process_group(self.process_group)

        def find_teacher() -> Teacher:
            return make_teacher(specification, self.data, self.device, cache, self.notices.append)

        return make_trainer(
            specification, self.data, self.device, find_teacher, notify=self.notices.append,
            decoding_cores=self.trial.decoding_cores,
        )  # fmt: skip

    def _start_process_group(self) -> None:
        """Use the processes of the last trial if they still run, else start new ones."""
        if variational_settings(self.trial.specification) is not None:
            raise InputError("bayesian is trained by one process, but `processes_per_trial` asks for several")
        if self.process_group is None:
            self.process_group = ProcessGroup(self.trial.processes, self.device, self.threads)
        elif not self.process_group.alive:
            self.process_group = self.process_group.successor()

    def _build_process_group(self, process_group: ProcessGroup) -> ProcessGroup:
        trial = self.trial
        cores = None if trial.decoding_cores is None else trial.decoding_cores // trial.processes
        process_group.build(trial.specification, trial.data_dir, trial.cache, self.notices.append, cores)
        return process_group

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process.

        Args:
            new_config: as for `setup`.

        Returns:
            True: the process can always be used again.
        """
        self.__dict__.pop("trainer", None)  # there is none if the last set-up failed
        self.failure = None  # its traceback refers to the last trainer
        free_memory("cuda" if torch.cuda.is_available() else "cpu")
        if gc.get_freeze_count() == 0:  # once: what later trials leave behind must still be collected
            gc.freeze()  # imports and data remain; to walk them again took 0.2 s at every change of trial
        self.setup(new_config)
        return True

    def step(self) -> dict[str, object]:
        """Train one epoch.

        Returns:
            The result for Tune and `Recorder`: metrics, notices and, when the trial has ended, its outcome. Where the
            processes that train it are lost, why: this one is sound, and takes the next attempt without a new start.

        Raises:
            WorkerLostError: this process cannot be used any more.
            Exception: anything else that failed, in the set-up too.
        """
        attempt, self.attempt = self.attempt, None
        report: dict[str, object] = {"trial": self.trial.trial_id, "attempt": attempt}
        if attempt is not None:
            report["history"] = list(self.history)
        try:
            if self.failure is not None:
                raise self.failure
            if self.initial:
                report["initial"] = self.initial
            if self.epochs == 0:
                return self._end_untrained(report)
            if not self._trained():
                self.history.append(self._train_epoch())
                if self._trained() and self._is_variational():
                    self._save_shared_posterior()
                    self._remove_groups()
                if self._trained() or self.trial.may_stop:  # else no record will need them
                    self.wrong_images = encode_wrong_images(self.trainer.wrong_images["val"].cpu().numpy())
        except WorkerLostError as error:
            if self.process_group is None:
                raise
            if attempt is not None:  # no epoch of it is on record
                report["attempt"] = {**attempt, "reason": str(error)}
            return {**report, "notices": self._take_notices(), "done": True, LOST: str(error)}
        except LoaderHungError as error:
            raise WorkerLostError(str(error)) from error
        except DivergedError as error:
            return {**report, "notices": self._take_notices(), **_ended(Status.DIVERGED, str(error))}
        except NetworkFailedError as error:
            return {**report, "notices": self._take_notices(), **_ended(Status.FAILED, str(error))}
        except (Exception, SystemExit) as error:
            if out_of_memory(error):
                ended = _ended(Status.OUT_OF_MEMORY, first_line(error))
            elif device_lost(error):
                raise WorkerLostError(first_line(error)) from error
            elif comes_again(error, self.device):
                ended = _ended(Status.FAILED, describe_error(error))
            else:
                raise
            return {**report, "notices": self._take_notices(), **ended}
        report |= {"notices": self._take_notices(), "wrong_images": self.wrong_images}
        report |= {"epoch": self.trainer.epoch, "metrics": self.history[-1], VAL_ERROR: self.history[-1][VAL_ERROR]}
        if self._trained():
            self._save_checkpoint()
            removed = {"removed": self.removed} if self.removed else {}
            return {**report, **removed, **_ended(Status.COMPLETED, "")}
        if self.is_checkpoint_due(self.history[-1]["epoch_seconds"]):
            self.save_if_possible()
        return report

    def _take_notices(self) -> list[str]:
        """Return the notices that no result has had yet."""
        notices = list(self.notices)
        self.notices.clear()
        return notices

    def _end_untrained(self, report: dict[str, object]) -> dict[str, object]:
        """End a trial that is only evaluated."""
        if not self.wrong_images:
            self.wrong_images = encode_wrong_images(self.trainer.wrong_images["val"].cpu().numpy())
        report |= {"notices": self._take_notices(), "wrong_images": self.wrong_images}
        report |= {"epoch": 0, VAL_ERROR: self.initial[VAL_ERROR]}
        if not math.isfinite(self.initial["val_loss"]):
            return {**report, **_ended(Status.DIVERGED, f"validation loss {self.initial['val_loss']} without training")}
        self._save_checkpoint()
        return {**report, **_ended(Status.COMPLETED, "")}

    def _train_epoch(self) -> dict[str, float]:
        """Train one epoch; returns its metrics.

        `report_seconds` is the time between the last epoch (or the set-up) and this one: checkpoint and report.
        If the epoch fails, the trainer is dropped: its weights belong to no epoch and must not be saved.
        """
        between = time.perf_counter() - self.epoch_ended_at
        try:
            metrics = self.trainer.train_epoch()
        except BaseException:
            del self.trainer
            raise
        self.epoch_ended_at = time.perf_counter()
        return metrics | {"report_seconds": between}

    def is_checkpoint_due(self, epoch_seconds: float) -> bool:
        """Decide whether to save now, because a kill in the next epoch would lose more training than allowed.

        Args:
            epoch_seconds: how long the next epoch will take: as long as the last.

        Returns:
            True if the checkpoint is due.
        """
        return time.monotonic() - self.saved_at + epoch_seconds > self.trial.checkpoint_seconds

    def cleanup(self) -> None:
        """Save what has been trained, when the worker ends because the study is interrupted."""
        trainer = self.__dict__.get("trainer")
        lost = isinstance(trainer, ProcessGroup) and not trainer.alive
        if trainer is not None and not lost and trainer.epoch > 0 and not self._trained():
            self.save_if_possible()
        if self.process_group is not None:
            self.process_group.close()

    def _trained(self) -> bool:
        return self.trainer.epoch >= self.epochs

    def save_if_possible(self) -> None:
        """Save a checkpoint; a full disk gives a notice, for only an interrupted trial needs its checkpoints."""
        try:
            self._save_checkpoint()
        except OSError as error:
            self.notices.append(f"no checkpoint after epoch {self.trainer.epoch}, the trial goes on: {error}")
            self.saved_at = time.monotonic()

    def _save_checkpoint(self) -> None:
        path = self.checkpoint_location.path
        state = self.trainer.weights() if self._trained() else self.trainer.state()
        metadata = {"trial_id": self.trial.trial_id, "history": json.dumps(self.history)}
        if self._trained():  # the driver may be killed before it has recorded the end
            metadata["wrong_images"] = self.wrong_images
        if self.initial:
            metadata["initial"] = json.dumps(self.initial)
        if self.removed:
            metadata["removed"] = json.dumps(self.removed)
        save_tensors(path, state, metadata, versions=MAX_CHECKPOINTS)
        versions = 1 if self._trained() else MAX_CHECKPOINTS  # a finished trial needs its last weights alone
        self.checkpoint_location.upload(versions)
        for older in saved_versions(path)[versions:]:
            older.unlink()
        if self._trained():
            remove_set_aside(path)  # nobody goes back to them now
        self.saved_at = time.monotonic()

    def _load_checkpoint(self) -> None:
        """Continue from the newest checkpoint that can be used; gives a notice for each that cannot.

        Such a file is renamed and never deleted: that this version of the code does not understand it says nothing of
        what an older one can do with it.
        """
        self.checkpoint_location.download()
        for path in saved_versions(self.checkpoint_location.path):
            try:
                state, metadata = load_tensors(path, "cpu" if isinstance(self.trainer, ProcessGroup) else self.device)
                history, initial = json.loads(metadata["history"]), json.loads(metadata.get("initial", "{}"))
                removed = json.loads(metadata.get("removed", "{}"))
                if removed:
                    plain = without_teacher(self.trial.specification).built(removed)
                    self.trainer = make_trainer(plain, self.data, self.device, notify=self.notices.append)
                self.trainer.load_state(state)
            except (InputError, RuntimeError, KeyError, ValueError, OSError) as error:
                if out_of_memory(error) or device_lost(error):
                    raise
                name = self.checkpoint_location.set_aside(path)
                self.notices.append(
                    f"{path} is not usable, the trial goes on from what was before it: {first_line(error)}; "
                    f"the file is now {name}"
                )
                self.trainer = self._make_trainer()
            else:
                self.history, self.initial, self.removed = history, initial, removed
                self.wrong_images = metadata.get("wrong_images", "")
                return

    def _is_variational(self) -> bool:
        return isinstance(self.trainer, Trainer) and self.trainer.variational is not None

    def _remove_groups(self) -> None:
        """Put the plain network that is left within the budget in the place of the variational one."""
        assert isinstance(self.trainer, Trainer)
        limits = self.trial.specification.budget
        budget = None if limits is None else Budget(**limits.model_dump())
        removed, plain = compress_posterior(self.trainer, budget)
        plain.epoch = self.epochs
        record, last = removed.record(), self.history[-1]
        record["mixed_error"] = mixed_precision_error(plain, removed.widths)
        measured = plain.evaluate("val")
        self.history[-1] = {**last, **recorded_names(measured), FULL_ERROR: last[VAL_ERROR]}
        upper = {name: limit for name, limit in limits.model_dump().items() if limit} if limits else {}
        if upper:
            tightest = min(upper, key=lambda name: 1 - removed.counts[name] / upper[name])
            record["counts"] = {**removed.counts, "budget_gap": upper[tightest] - removed.counts[tightest]}
        self.removed, self.trainer = record, plain

    def _shared_posterior(self) -> Path | None:
        """The file of the trained posterior, which trials share that differ in nothing but their budget."""
        specification = self.trial.specification
        if specification.budget is None or self.trial.relay is not None:
            return None
        content = specification.to_json() | {"budget": None, "data": specification.data.fingerprint}
        content["method"] = {
            name: value
            for name, value in specification.method.settings().items()
            if name not in Bayesian.AFTER_TRAINING
        }
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return Path(self.trial.study_dir) / POSTERIORS_FOLDER / f"{name}.safetensors"

    def _save_shared_posterior(self) -> None:
        """Keep the trained posterior for the other budgets; a full disk gives a notice."""
        path = self._shared_posterior()
        if path is None or path.is_file():
            return
        metadata = {"trial_id": self.trial.trial_id, "history": json.dumps(self.history)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, self.trainer.weights(), metadata)
        except OSError as error:
            self.notices.append(f"the posterior is not kept for other budgets, which train it again: {error}")

    def _take_shared_posterior(self) -> None:
        """Take the posterior that another trial of this study has trained, so that only groups are removed here."""
        path = self._shared_posterior() if self._is_variational() and self.trainer.epoch == 0 else None
        if path is None or not path.is_file():
            return
        state, metadata = load_tensors(path, self.device)
        self.trainer.load_state(state)
        self.history = [
            {name: value for name, value in epoch.items() if name not in MACHINE_METRICS}
            for epoch in json.loads(metadata["history"])
        ]
        self.history[-1]["epoch_seconds"] = 0.0  # no step was trained here
        self.notices.append(f"the posterior is the one that trial {metadata['trial_id']} has trained")
        self._remove_groups()
        self.wrong_images = encode_wrong_images(self.trainer.wrong_images["val"].cpu().numpy())

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: Ray's own checkpoints are not used."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: Ray's own checkpoints are not used."""


def _ended(status: Status, reason: str) -> dict[str, object]:
    return {"done": True, "outcome": str(status), "reason": reason}
