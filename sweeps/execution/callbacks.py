"""What Ray Tune calls during a study: the searcher, the recorder of results and the time limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from sweeps.cluster.ray_adapter import drop_metric_statistics, trial_error
from sweeps.execution.retries import Attempts
from sweeps.records.events import TERMINAL, Status
from sweeps.records.journal import FullDiskError, is_disk_full
from sweeps.records.specification import Trial
from sweeps.resources.slots import TrialResources
from sweeps.search.prefetch import ProposalPrefetcher
from sweeps.search.search import Search
from sweeps.teachers.worker import NO_CACHE, CacheOptions
from sweeps.utils.clock import monotonic_time
from sweeps.utils.signals import raise_if_interrupted


@dataclass(frozen=True)
class Launch:
    """Everything that Tune needs beside the search."""

    study_dir: Path
    data_dir: Path | None
    resources: TrialResources  # what each trial holds
    most: int | None  # trials at once, where the user set a limit below what the resources allow
    seconds: float | None
    on_change: Callable[[], None]
    cache: CacheOptions = NO_CACHE
    relay: bool = False  # whether checkpoints travel to this machine, because no disk is shared


class _Unpickled:
    """Ray stores its searcher and callbacks with the experiment; ours hold open files, and nothing is restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneSearcher(_Unpickled, Searcher):
    """Tune's view of the search; outcomes reach the search through the callback, in one place."""

    def __init__(self, search: Search, launch: Launch, prefetcher: ProposalPrefetcher | None, relay: str | None):
        """Without `prefetcher` it hands out what was put off to a larger share."""
        super().__init__()
        self._search, self._launch, self._prefetcher, self._relay = search, launch, prefetcher, relay

    def suggest(self, trial_id: str) -> Any:
        raise_if_interrupted()
        trial = self._next()
        if trial is None:
            return Searcher.FINISHED if self._is_over() else None
        return self._config(trial)

    def _next(self) -> Trial | None:
        if self._prefetcher is None:
            return self._search.pop_postponed()
        return self._prefetcher.next(wait=not self._search.is_running())

    def _is_over(self) -> bool:
        """Not before the last end: a trial whose process is lost is handed out once more."""
        if self._search.is_running():
            return False
        return self._prefetcher is None or self._search.is_exhausted() or self._search.is_blocked()

    def _config(self, trial: Trial) -> dict[str, Any]:
        return {
            "trial_id": trial.trial_id, "role": str(trial.role), "stratum": trial.stratum,
            "specification": trial.specification, "study_dir": str(self._launch.study_dir),
            "data_dir": str(self._launch.data_dir) if self._launch.data_dir else None,
            "cache": self._launch.cache.to_config(), "relay": self._relay,
            "processes": self._launch.resources.share.processes, "sharing": self._launch.resources.sharing,
            "checkpoint_seconds": self._search.space.resources.checkpoint_seconds,
        }  # fmt: skip

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see Recorder."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal and Optuna's storage hold the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed study starts a new Tuner."""


class Recorder(_Unpickled, Callback):
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
        postponed = self._search.record.trials[trial_id].postponed
        share, larger = self._launch.resources.share, self._launch.resources.larger
        if status is not Status.OUT_OF_MEMORY or (larger is None and not postponed):
            self._finish(trial_id, status, reason)
        elif larger is None or postponed:
            self._finish(trial_id, status, f"{postponed.rstrip('.')}; once more on {share}: {reason}")
        else:
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
        error = trial_error(trial)
        if is_disk_full(error):  # not the trial's fault: it goes on where it is, once there is room
            raise FullDiskError(self._search.journal.path)
        trial_id = trial.config["trial_id"]
        self._ended.append(trial)
        if self._attempts.may_go_on(trial_id, error):
            self._search.requeue(trial_id)
            return
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self._finish(trial_id, Status.FAILED, lines[-1].strip()[:500])
        self._launch.on_change()

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        """Tune keeps every trial, with statistics of each of its metrics; of one that has ended it needs neither."""
        for trial in self._ended:
            drop_metric_statistics(trial)
        self._ended.clear()

    def _finish(self, trial_id: str, status: Status, reason: str) -> None:
        if self._search.record.trials[trial_id].status in TERMINAL:
            return
        self._search.finish(trial_id, status, reason)


class TimeLimit(Stopper):
    """Ends the experiment after so many seconds; Tune's own limit believes the system's clock, which may jump."""

    def __init__(self, seconds: float):
        self._end = monotonic_time() + seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return monotonic_time() >= self._end
