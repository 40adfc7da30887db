"""Runs a search as Ray Tune experiments: gives its trials to Tune and brings results back to the search."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from sweeps.cluster import (
    CardPlaces,
    HeadWatchdog,
    allow_pending_trials,
    count_no_callbacks,
    head_address,
    hide_failed_attempts,
    keep_trial_errors_in_memory,
    keep_workers,
    raylet_address,
    use_started_workers,
)
from sweeps.execution.callbacks import ExecutionConfig, Recorder, TimeLimit, TuneSearcher
from sweeps.execution.checkpoint_relay import start_relay
from sweeps.execution.scheduler import StratifiedStopping
from sweeps.execution.trainable import TrialTrainable
from sweeps.execution.trial_config import trial_config
from sweeps.records import TERMINAL, TRIALS_FOLDER, Status, resume_command
from sweeps.search import ProposalPrefetcher, Search
from sweeps.utils import monotonic_time, raise_if_interrupted

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as RayTrial

RAY_FOLDER = "ray"  # Ray's own files of a running experiment; nothing is ever read back from them


def run_search(search: Search, config: ExecutionConfig) -> bool:
    """Train until the search has no more trials, the time is over, or Ctrl-C.

    A resumed study continues the trials that are interrupted. The search runs in phases: trials that ran out of memory
    in one are trained in the next with a larger share, and trials that waited for these in the one after it.

    Args:
        search: the study's search.
        config: folders, resources and limits.

    Returns:
        Whether the time limit has ended it.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
        FullDiskError: the disk is full.
    """
    end = None if config.seconds is None else monotonic_time() + config.seconds
    relay, relay_actor = start_relay(config.study_dir) if config.use_relay else (None, None)
    handler = signal.getsignal(signal.SIGINT)  # Tune leaves a handler behind that would swallow a later Ctrl-C
    try:
        while not _is_over(end):
            raise_if_interrupted()
            with ProposalPrefetcher(search, depth=config.resources.share.concurrent) as prefetcher:
                _run_phase(search, _with_time_left(config, end), prefetcher, relay)
            if not search.postponed or search.is_running() or _is_over(end):
                break
            _run_phase(search, _with_time_left(_with_larger_share(config), end), None, relay)
            if search.is_over() or search.is_running() or search.postponed or _is_over(end):
                break
        search.release_ready()
        return _is_over(end)
    except KeyboardInterrupt:
        search.release_ready()
        raise
    finally:
        del relay_actor  # the relay ends with its last handle
        signal.signal(signal.SIGINT, handler)
        shutil.rmtree(config.study_dir / RAY_FOLDER, ignore_errors=True)
        _remove_checkpoints(search, config)


def _with_larger_share(config: ExecutionConfig) -> ExecutionConfig:
    resources = config.resources
    enlarged = dataclasses.replace(resources, share=resources.larger or resources.share, larger=None, growing=None)
    return dataclasses.replace(config, resources=enlarged)


def _with_time_left(config: ExecutionConfig, end: float | None) -> ExecutionConfig:
    return config if end is None else dataclasses.replace(config, seconds=max(0.0, end - monotonic_time()))


def _is_over(end: float | None) -> bool:
    return end is not None and monotonic_time() >= end


def _run_phase(
    search: Search, config: ExecutionConfig, prefetcher: ProposalPrefetcher | None, relay: str | None
) -> None:  # fmt: skip
    scheduler: FIFOScheduler = FIFOScheduler()
    if search.space.search.stop != "none":
        scheduler = StratifiedStopping(search.space.search, search.space.epochs, search.record, search.adopted)
    resources = {"cpu": config.resources.share.cpus, "gpu": config.resources.share.gpus}
    allow_pending_trials(config.resources.share.concurrent)
    keep_trial_errors_in_memory()
    hide_failed_attempts()
    count_no_callbacks()
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=TuneSearcher(search, config, prefetcher, relay), scheduler=scheduler, num_samples=-1,
            reuse_actors=True, max_concurrent_trials=config.max_concurrent,
            trial_dirname_creator=lambda trial: trial_config(trial.config).trial_id,
        ),
        run_config=tune.RunConfig(
            storage_path=str(config.study_dir / RAY_FOLDER), name="experiment", verbose=0,
            callbacks=[Recorder(search, scheduler, config)],
            stop=None if config.seconds is None else TimeLimit(config.seconds),
        ),
    )  # fmt: skip
    slots = config.resources.share.concurrent

    def count_kept() -> int:
        """As many workers as there are slots, until nothing more is launched."""
        over = search.is_exhausted() if prefetcher is not None else not search.postponed
        return 0 if over else slots

    growing = config.resources.growing

    def may_keep(trial: RayTrial) -> bool:
        return growing is None or not growing.is_surplus(trial_config(trial.config).trial_id)

    watchdog = HeadWatchdog(
        head_address(), resume_command(config.study_dir), config.before_exit, raylet=raylet_address()
    )  # fmt: skip
    with watchdog, keep_workers(count_kept, may_keep), ExitStack() as stack:
        stack.enter_context(use_started_workers(reserves=config.resources.holds_places))
        if growing is not None and config.resources.holds_places:
            places = stack.enter_context(CardPlaces(growing.cards, growing.max_slots))
            growing.on_growth, growing.on_surplus = places.open, places.close_one
        tuner.fit()


def _remove_checkpoints(search: Search, config: ExecutionConfig) -> None:
    """Remove the checkpoints of trials that have ended and are not complete.

    A worker that ends saves its state, so that a stopped trial has one.
    """
    for trial in search.record.trials.values():
        if trial.status in TERMINAL and trial.status is not Status.COMPLETED:
            shutil.rmtree(config.study_dir / TRIALS_FOLDER / trial.trial_id, ignore_errors=True)
