"""Runs a search as a Ray Tune experiment: hands trials to Tune and carries results back to the search."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from lowrank.errors import InputError
from sweeps.cluster.head_watchdog import HeadWatch
from sweeps.execution.checkpoint_relay import start_relay
from sweeps.execution.retries import Attempts, failure
from sweeps.execution.scheduler import StratifiedStopping
from sweeps.execution.trainable import TrialTrainable
from sweeps.records.journal import FullDiskError, tells_of_full_disk
from sweeps.records.names import TERMINAL, TRIALS_FOLDER, Status
from sweeps.records.specification import Trial
from sweeps.resources.slots import Room
from sweeps.search.prefetch import Ahead
from sweeps.search.search import Search
from sweeps.space.teacher_settings import NO_CACHE, CacheOptions
from sweeps.utils.clock import steady
from sweeps.utils.signals import check, heed_termination

RAY_FOLDER = "ray"  # Ray's own files of a running experiment; nothing is ever read back from them
ANSWER_SECONDS = 5.0
STARTS = 3
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial's last result has no error
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative data folders keep their meaning
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who was given no card sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # reasons are recorded and shown in the final table
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # nothing is restored from Tune's snapshots, which grow with the study
}


@dataclass(frozen=True)
class Launch:
    """Everything that Tune needs beside the search."""

    study_dir: Path
    data_dir: Path | None
    room: Room  # what each trial holds
    most: int | None  # trials at once, where the user set a limit below what the resources allow
    seconds: float | None
    on_change: Callable[[], None]
    cache: CacheOptions = NO_CACHE
    relay: bool = False  # whether checkpoints travel to this machine, because no disk is shared


def connect(address: str | None, cpus: int | None = None) -> None:
    """Start Ray on this machine, or connect to the cluster at `address`; raises InputError if none answers there."""
    if address and address != "auto":
        _check_address(address)
    if ray.is_initialized():  # by an earlier study of a series
        return
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_here(cpus)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"no Ray cluster answers at {address!r} ({detail}); give `auto`, HOST:PORT, or leave --address out"
        ) from error
    heed_termination()


def _start_here(cpus: int | None) -> None:
    """Start Ray on this machine; on a busy one its start may outlast the 30 s that Ray itself allows.

    `local`, since Ray would otherwise join whatever cluster was started last on this machine, by anybody.
    """
    for left in range(STARTS - 1, -1, -1):
        try:
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
            return
        except Exception as error:  # Ray has no class of its own for this
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise InputError(f"Ray does not start on this machine: {error}") from error
            print("Ray did not start within its 30 s; trying again", flush=True)


def _check_address(address: str) -> None:
    """Ray itself waits for minutes when nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address must be auto or HOST:PORT, but got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers at {address} ({error}); start a head with `ray start --head`") from error


class _Unpickled:
    """Ray stores its searcher and callbacks with the experiment; ours hold open files, and nothing is restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _TuneSearcher(_Unpickled, Searcher):
    """Tune's view of the search; outcomes reach the search through the callback, in one place."""

    def __init__(self, search: Search, launch: Launch, ahead: Ahead | None, relay: str | None):
        """Without `ahead` it hands out what was put off to a larger share."""
        super().__init__()
        self._search, self._launch, self._ahead, self._relay = search, launch, ahead, relay

    def suggest(self, trial_id: str) -> Any:
        check()
        trial = self._next()
        if trial is None:
            return Searcher.FINISHED if self._is_over() else None
        return self._config(trial)

    def _next(self) -> Trial | None:
        if self._ahead is None:
            return self._search.next_later()
        return self._ahead.next(wait=not self._search.is_running())

    def _is_over(self) -> bool:
        """Not before the last end: a trial whose process is lost is handed out once more."""
        if self._search.is_running():
            return False
        return self._ahead is None or self._search.is_exhausted() or self._search.is_held_up()

    def _config(self, trial: Trial) -> dict[str, Any]:
        return {
            "trial_id": trial.trial_id, "role": str(trial.role), "stratum": trial.stratum,
            "specification": trial.specification, "study_dir": str(self._launch.study_dir),
            "data_dir": str(self._launch.data_dir) if self._launch.data_dir else None,
            "cache": self._launch.cache.to_config(), "relay": self._relay,
            "processes": self._launch.room.share.processes, "sharing": self._launch.room.sharing,
            "checkpoint_seconds": self._search.space.resources.checkpoint_seconds,
        }  # fmt: skip

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see _Recorder."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and Optuna's storage hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed study starts a new Tuner."""


class _Recorder(_Unpickled, Callback):
    """Carries every result and every end into the search, which journals it and tells the sampler."""

    def __init__(self, search: Search, scheduler: FIFOScheduler, launch: Launch):
        self._search, self._launch = search, launch
        self._stopped: dict[str, str] = getattr(scheduler, "stopped", {})
        self._attempts = Attempts()
        self._ended: list[RayTrial] = []

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id = result.get("trial")
        if trial_id is None:
            return
        if result.get("attempt"):
            self._search.write_attempt(trial_id, result["attempt"])
            for epoch, metrics in enumerate(result.get("history", []), start=1):
                self._write_missing(trial_id, epoch, metrics)
        for text in result.get("notices", []):
            self._search.write_notice(trial_id, text)
        if "metrics" in result:
            self._write_missing(trial_id, result["epoch"], result["metrics"])
        if "outcome" in result:
            self._end(trial_id, Status(result["outcome"]), result["reason"])
        self._launch.on_change()

    def _end(self, trial_id: str, status: Status, reason: str) -> None:
        """Finish a trial; what ran out of memory is tried once more, where there is a larger share to be had."""
        postponed, larger = self._search.record.trials[trial_id].postponed, self._launch.room.larger
        if status is not Status.OUT_OF_MEMORY or (larger is None and not postponed):
            self._finish(trial_id, status, reason)
        elif larger is None or postponed:
            self._finish(trial_id, status, f"{postponed.rstrip('.')}; once more on {self._launch.room.share}: {reason}")
        else:
            share = self._launch.room.share
            self._search.postpone(trial_id, f"on {share}: {reason}")
            self._search.write_notice(
                trial_id, f"out of memory: {trial_id} on {share}; when the others are done it is tried once more on "
                f"{larger} ({reason})",
            )  # fmt: skip

    def _write_missing(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        if epoch not in self._search.record.trials[trial_id].epochs:
            self._search.write_epoch(trial_id, epoch, metrics)
            self._attempts.advanced(trial_id)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Without an outcome of its own and without a stop by the scheduler it was interrupted: no end is recorded."""
        trial_id = trial.config["trial_id"]
        self._ended.append(trial)
        if trial_id in self._stopped:
            self._finish(trial_id, Status.STOPPED, self._stopped[trial_id])
            self._launch.on_change()

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        error = failure(trial)
        if tells_of_full_disk(error):  # not the trial's fault: it goes on where it is, once there is room
            raise FullDiskError(self._search.journal.path)
        trial_id = trial.config["trial_id"]
        self._ended.append(trial)
        if self._attempts.may_go_on(trial_id, error):
            self._search.take_back(trial_id)
            return
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self._finish(trial_id, Status.FAILED, lines[-1].strip()[:500])
        self._launch.on_change()

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        """Tune keeps every trial, with statistics of each of its metrics; of one that has ended it needs neither."""
        for trial in self._ended:
            kept = trial.run_metadata
            kept.metric_analysis, kept.metric_n_steps, kept.last_result = {}, {}, {"training_iteration": 0}
        self._ended.clear()

    def _finish(self, trial_id: str, status: Status, reason: str) -> None:
        if self._search.record.trials[trial_id].status in TERMINAL:
            return
        self._search.finish(trial_id, status, reason)


class _TimeLimit(Stopper):
    """Ends the experiment after so many seconds; Tune's own limit believes the system's clock, which may jump."""

    def __init__(self, seconds: float):
        self._end = steady() + seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return steady() >= self._end


def run(search: Search, launch: Launch) -> None:
    """Train until the search has nothing more, the time is up, or Ctrl-C; a trial without an end may be resumed.

    In phases: what ran out of memory in one is trained in the next, with a larger share, and what waited for that in
    the one after it.
    """
    until = None if launch.seconds is None else steady() + launch.seconds
    relay, keeper = start_relay(launch.study_dir) if launch.relay else (None, None)  # it lives as long as its handle
    handler = signal.getsignal(signal.SIGINT)  # Tune leaves its own behind, which would swallow a later Ctrl-C
    try:
        while True:
            check()
            with Ahead(search, launch.room.share.concurrent) as ahead:
                _run_phase(search, _within(launch, until), ahead, relay)
            if not search.later or search.is_running() or _is_late(until):
                break
            _run_phase(search, _within(_enlarged(launch), until), None, relay)
            if search.is_over() or search.is_running() or search.later or _is_late(until):
                break
    finally:
        del keeper
        signal.signal(signal.SIGINT, handler)
        shutil.rmtree(launch.study_dir / RAY_FOLDER, ignore_errors=True)
        _drop_checkpoints(search, launch)


def _enlarged(launch: Launch) -> Launch:
    room = launch.room
    return dataclasses.replace(launch, room=dataclasses.replace(room, share=room.larger or room.share, larger=None))


def _within(launch: Launch, until: float | None) -> Launch:
    """What is left of the time."""
    return launch if until is None else dataclasses.replace(launch, seconds=max(1.0, until - steady()))


def _is_late(until: float | None) -> bool:
    return until is not None and steady() >= until


def _run_phase(search: Search, launch: Launch, ahead: Ahead | None, relay: str | None) -> None:
    scheduler: FIFOScheduler = FIFOScheduler()
    if search.space.search.stop != "none":
        scheduler = StratifiedStopping(search.space.search, search.space.epochs, search.record, search.adopted)
    resources = {"cpu": launch.room.share.cpus, "gpu": launch.room.share.gpus}
    # As many proposals lie ready as there are slots: Tune's default of one would start the first wave one by one
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(launch.room.share.concurrent)
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=_TuneSearcher(search, launch, ahead, relay), scheduler=scheduler, num_samples=-1,
            reuse_actors=True, max_concurrent_trials=launch.most,
            trial_dirname_creator=lambda trial: str(trial.config["trial_id"]),
        ),
        run_config=tune.RunConfig(
            storage_path=str(launch.study_dir / RAY_FOLDER), name="experiment", verbose=0,
            callbacks=[_Recorder(search, scheduler, launch)],
            stop=None if launch.seconds is None else _TimeLimit(launch.seconds),
        ),
    )  # fmt: skip
    with HeadWatch(ray.get_runtime_context().gcs_address, launch.study_dir.name):
        tuner.fit()


def _drop_checkpoints(search: Search, launch: Launch) -> None:
    """Remove what trials that will not go on have left; a worker that is let go saves its last state."""
    for trial in search.record.trials.values():
        if trial.status in TERMINAL and trial.status is not Status.COMPLETED:
            shutil.rmtree(launch.study_dir / TRIALS_FOLDER / trial.trial_id, ignore_errors=True)
