"""What Ray Tune calls during a study: the searcher, the recorder of results and the time limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from sweeps.cluster import drop_metric_statistics, error_reason, trial_error
from sweeps.execution.retries import RetryPolicy
from sweeps.execution.trainable import LOST
from sweeps.execution.trial_config import TrialConfig, trial_config
from sweeps.execution.worker_errors import WorkerLostError
from sweeps.records import TERMINAL, VAL_ERROR, EventFields, FullDiskError, Role, Status, Trial, is_study_disk_full
from sweeps.resources import Share, TrialResources
from sweeps.search import ProposalPrefetcher, Search
from sweeps.teachers import NO_CACHE, CacheOptions
from sweeps.utils import monotonic_time, raise_if_interrupted

MAX_REASON = 500  # characters of a failure's reason in the journal


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Everything that the execution of a study needs beside the search."""

    study_dir: Path
    data_dir: Path | None
    resources: TrialResources  # CPUs and GPUs of each trial
    max_concurrent: int | None  # trials at once, if the user allows fewer than the resources do
    seconds: float | None  # time limit, after which trials are interrupted; None: no limit
    on_change: Callable[[], None]  # called when the study's record has changed
    cache: CacheOptions = NO_CACHE
    before_exit: Callable[[], str | None] = lambda: None  # closes the records before the process is ended from outside
    use_relay: bool = False  # whether workers send checkpoints to this machine, because they share no disk with it


class _NoState:
    """Pickles without attributes: Ray saves searcher and callbacks, and the open files of ours cannot be pickled."""

    def __getstate__(self) -> dict[str, object]:
        return {}


class TuneSearcher(_NoState, Searcher):
    """Gives Tune the trials of the search; `Recorder` alone reports their outcomes to the search."""

    def __init__(
        self, search: Search, config: ExecutionConfig, prefetcher: ProposalPrefetcher | None, relay: str | None
    ):  # fmt: skip
        """Prepare to suggest trials.

        Args:
            search: the study's search.
            config: what the trials need.
            prefetcher: prepares new trials; None in the phase of the postponed trials, which get a larger share.
            relay: name of the checkpoint relay's actor; None where workers see the study's folder.
        """
        super().__init__()
        self._search, self._config, self._prefetcher, self._relay = search, config, prefetcher, relay

    def suggest(self, trial_id: str) -> Any:
        """Return the config of the next trial, None if there is none now, or FINISHED."""
        raise_if_interrupted()
        trial = self._next()
        if trial is None:
            return Searcher.FINISHED if self._has_ended() else None
        return self._trial_config(trial).to_tune()

    def _next(self) -> Trial | None:
        resources, running = self._config.resources, self._search.count_running()
        # A trial that waits in Tune has a worker of its own started, which ends when another trial leaves it one
        if running >= resources.share.concurrent:
            return None
        if resources.growing is not None and not resources.growing.may_launch(running):
            return None
        if self._prefetcher is None:
            return self._search.pop_postponed()
        return self._prefetcher.next(wait=not self._search.is_running())

    def _has_ended(self) -> bool:
        """Return whether no further trial can come. While one runs, it can: that one may have to be retried."""
        if self._search.is_running():
            return False
        return self._prefetcher is None or self._search.is_exhausted() or self._search.is_blocked()

    def _trial_config(self, trial: Trial) -> TrialConfig:
        config, growing = self._config, self._config.resources.growing
        return TrialConfig(
            trial_id=trial.trial_id, role=trial.role, stratum=trial.stratum, specification=trial.specification,
            study_dir=str(config.study_dir), data_dir=str(config.data_dir) if config.data_dir else None,
            cache=config.cache, relay=self._relay, processes=config.resources.share.processes,
            decoding_cores=config.resources.cores_per_trial,
            sharing=config.resources.sharing, card_share=growing.share if growing is not None else None,
            checkpoint_seconds=self._search.space.resources.checkpoint_seconds,
            may_stop=trial.role is Role.SEARCH and self._search.space.search.stop != "none",
        )  # fmt: skip

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: `Recorder` reports outcomes."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal and Optuna's storage hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a resumed study starts a new Tuner."""


class Recorder(_NoState, Callback):
    """Reports every result and every end of a trial to the search, which journals it and tells the sampler."""

    def __init__(self, search: Search, scheduler: FIFOScheduler, config: ExecutionConfig):
        """Prepare to record.

        Args:
            search: the study's search.
            scheduler: may have an attribute `stopped`: the reason of each early stop, by trial id.
            config: has the resources of the trials and `on_change`.
        """
        self._search, self._config = search, config
        self._growing = config.resources.growing
        self._stop_reasons: dict[str, str] = getattr(scheduler, "stopped", {})
        self._retries = RetryPolicy()
        self._begun: set[str] = set()  # trials whose present attempt is on record
        self._ended: list[RayTrial] = []
        self._wrong_images: dict[str, str] = {}  # of the last epoch of running trials, by id
        self._removed: dict[str, EventFields] = {}  # what is left of variational layers, by id

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **kwargs: Any
    ) -> None:
        """Record an attempt, epochs and notices, and the end where the trial reports its outcome."""
        trial_id = result.get("trial")
        if trial_id is None:
            return
        if result.get("attempt"):
            self._search.write_attempt(trial_id, result["attempt"])
            self._begun.add(trial_id)
            if self._growing is not None:
                self._growing.begin(trial_id, result["attempt"])
            for epoch, metrics in enumerate(result.get("history", []), start=1):
                self._write_if_new(trial_id, epoch, metrics)
        if result.get("initial") and not self._search.record.trials[trial_id].initial:
            self._search.write_initial(trial_id, result["initial"])
        for text in result.get("notices", []):
            self._search.write_notice(trial_id, text)
        if "metrics" in result:
            self._write_if_new(trial_id, result["epoch"], result["metrics"])
            if self._growing is not None:
                self._growing.add_epoch(trial_id, result["metrics"])
        if VAL_ERROR in result:
            record = self._search.record.trials[trial_id]
            evaluated = record.epochs[record.last_epoch] if record.epochs else record.initial
            # On a GPU a repeated epoch may differ from the recorded one, and the record stays
            recorded = evaluated.get(VAL_ERROR) == result[VAL_ERROR]
            self._wrong_images[trial_id] = result.get("wrong_images", "") if recorded else ""
        if result.get("removed"):
            self._removed[trial_id] = result["removed"]
        if LOST in result:
            self._repeat_or_fail(trial_id, WorkerLostError(result[LOST]))
        if "outcome" in result:
            self._finish_or_postpone(trial_id, Status(result["outcome"]), result["reason"])
        self._config.on_change()

    def _finish_or_postpone(self, trial_id: str, status: Status, reason: str) -> None:
        """Record an end. A trial that ran out of memory for the first time is postponed, if there is a larger share.

        Without one, a trial of several processes is tried again at once, as after any failure: all of them have ended,
        and one of the cards may have been full of something else.
        """
        if self._growing is not None and status is Status.OUT_OF_MEMORY:
            self._growing.out_of_memory(reason)
        postponed = self._search.record.trials[trial_id].postponed  # why it was postponed; empty if it was not
        share, larger = self._held_share(trial_id), self._config.resources.larger
        if status is Status.OUT_OF_MEMORY and larger is None and not postponed and self._may_repeat(trial_id, reason):
            self._search.write_notice(trial_id, f"an attempt has failed and is repeated: {reason}")
            self._search.requeue(trial_id)
        elif status is not Status.OUT_OF_MEMORY or (larger is None and not postponed):
            self._finish(trial_id, status, reason)
        elif larger is None or postponed:
            self._finish(trial_id, status, f"{postponed.rstrip('.')}; once more on {share}: {reason}")
        else:
            self._search.postpone(trial_id, f"on {share}: {reason}")
            self._search.write_notice(
                trial_id, f"out of memory: {trial_id} on {share}; when the others are done it is tried once more on "
                f"{larger} ({reason})",
            )  # fmt: skip

    def _held_share(self, trial_id: str) -> Share:
        """What the trial held: less than the others' share, or more, while their number is not decided."""
        share, attempts = self._config.resources.share, self._search.record.trials[trial_id].attempts
        return replace(share, gpus=attempts[-1]["gpus"]) if self._growing is not None and attempts else share

    def _may_repeat(self, trial_id: str, reason: str) -> bool:
        return self._config.resources.share.processes > 1 and self._may_retry(trial_id, reason)

    def _may_retry(self, trial_id: str, error: object) -> bool:
        return self._retries.may_retry(trial_id, self._search.record.trials[trial_id].last_epoch, error)

    def _write_if_new(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        if epoch not in self._search.record.trials[trial_id].epochs:
            self._search.write_epoch(trial_id, epoch, metrics)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **kwargs: Any) -> None:
        """Record a stop by the scheduler.

        A trial that ends without such a stop or an outcome was interrupted; a resumed study continues it.
        """
        trial_id = trial_config(trial.config).trial_id
        self._end_attempt(trial)
        self._begun.discard(trial_id)
        if trial_id in self._stop_reasons:
            self._finish(trial_id, Status.STOPPED, self._stop_reasons[trial_id])
            self._config.on_change()

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **kwargs: Any) -> None:
        """Retry a failed attempt, with a notice of why, or record the failure.

        Raises:
            FullDiskError: the disk is full, which is not the trial's fault; a resumed study continues it.
        """
        error = trial_error(trial)
        if is_study_disk_full(error, self._config.study_dir):
            raise FullDiskError(self._search.journal.path)
        trial_id = trial_config(trial.config).trial_id
        self._end_attempt(trial)
        self._repeat_or_fail(trial_id, error)

    def _repeat_or_fail(self, trial_id: str, error: object) -> None:
        """Launch a trial again after a failed attempt, with a notice of why, or record that it has failed."""
        reason = error_reason(error)[:MAX_REASON]
        if trial_id not in self._begun:
            self._search.write_attempt(trial_id, self._lost_attempt(reason))
        self._begun.discard(trial_id)
        if self._may_retry(trial_id, error):
            if not self._search.record.trials[trial_id].ended:
                self._search.write_notice(trial_id, f"an attempt has failed and is repeated: {reason}")
            self._search.requeue(trial_id)
            return
        self._finish(trial_id, Status.FAILED, reason)
        self._config.on_change()

    def _lost_attempt(self, reason: str) -> EventFields:
        """An attempt that ended before its worker could say on which machine it is and what it holds."""
        share, growing = self._config.resources.share, self._growing
        gpus = share.gpus if growing is None else growing.share
        return {
            "device": "cuda" if gpus else "cpu", "cpus": share.cpus, "gpus": gpus, "processes": share.processes,
            "reason": reason,
        }  # fmt: skip

    def _end_attempt(self, trial: RayTrial) -> None:
        self._ended.append(trial)
        if self._growing is not None:
            self._growing.remove(trial_config(trial.config).trial_id)

    def on_step_end(self, iteration: int, trials: list[RayTrial], **kwargs: Any) -> None:
        """Free the metrics of trials that have ended, which Tune keeps until the end of the study."""
        for trial in self._ended:
            drop_metric_statistics(trial)
        self._ended.clear()

    def _finish(self, trial_id: str, status: Status, reason: str) -> None:
        wrong_images, removed = self._wrong_images.pop(trial_id, ""), self._removed.pop(trial_id, None)
        if self._search.record.trials[trial_id].status in TERMINAL:
            return
        ended_by_rule = status in (Status.COMPLETED, Status.STOPPED)
        self._search.finish(trial_id, status, reason, wrong_images if ended_by_rule else "", removed)


class TimeLimit(Stopper):
    """Ends the experiment after some seconds.

    It reads a monotonic clock. Tune's own time limit reads the system's clock, which may be set while a study runs.
    """

    def __init__(self, seconds: float):
        """Start the clock.

        Args:
            seconds: the limit, counted from now.
        """
        self._end = monotonic_time() + seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: the limit ends all trials at once, never a single one."""
        return False

    def stop_all(self) -> bool:
        """Return whether the time is over."""
        return monotonic_time() >= self._end
