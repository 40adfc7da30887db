"""Runs a search as Ray Tune experiments: hands trials to Tune and carries results back to the search."""

from __future__ import annotations

import dataclasses
import shutil
import signal

from ray import tune
from ray.tune.schedulers import FIFOScheduler

from sweeps.cluster.head_watchdog import HeadWatchdog
from sweeps.cluster.ray_adapter import allow_pending_trials, head_address
from sweeps.execution.callbacks import Launch, Recorder, TimeLimit, TuneSearcher
from sweeps.execution.checkpoint_relay import start_relay
from sweeps.execution.scheduler import StratifiedStopping
from sweeps.execution.trainable import TrialTrainable
from sweeps.records.events import TERMINAL, Status
from sweeps.records.names import TRIALS_FOLDER
from sweeps.search.prefetch import ProposalPrefetcher
from sweeps.search.search import Search
from sweeps.utils.clock import monotonic_time
from sweeps.utils.signals import raise_if_interrupted

RAY_FOLDER = "ray"  # Ray's own files of a running experiment; nothing is ever read back from them


def run(search: Search, launch: Launch) -> None:
    """Train until the search has nothing more, the time is up, or Ctrl-C; a trial without an end may be resumed.

    In phases: what ran out of memory in one is trained in the next, with a larger share, and what waited for that in
    the one after it.
    """
    until = None if launch.seconds is None else monotonic_time() + launch.seconds
    relay, keeper = start_relay(launch.study_dir) if launch.relay else (None, None)  # it lives as long as its handle
    handler = signal.getsignal(signal.SIGINT)  # Tune leaves its own behind, which would swallow a later Ctrl-C
    try:
        while True:
            raise_if_interrupted()
            with ProposalPrefetcher(search, depth=launch.resources.share.concurrent) as prefetcher:
                _run_phase(search, _within(launch, until), prefetcher, relay)
            if not search.postponed or search.is_running() or _is_late(until):
                break
            _run_phase(search, _within(_enlarged(launch), until), None, relay)
            if search.is_over() or search.is_running() or search.postponed or _is_late(until):
                break
    finally:
        del keeper
        signal.signal(signal.SIGINT, handler)
        shutil.rmtree(launch.study_dir / RAY_FOLDER, ignore_errors=True)
        _drop_checkpoints(search, launch)


def _enlarged(launch: Launch) -> Launch:
    resources = launch.resources
    enlarged = dataclasses.replace(resources, share=resources.larger or resources.share, larger=None)
    return dataclasses.replace(launch, resources=enlarged)


def _within(launch: Launch, until: float | None) -> Launch:
    """What is left of the time."""
    return launch if until is None else dataclasses.replace(launch, seconds=max(1.0, until - monotonic_time()))


def _is_late(until: float | None) -> bool:
    return until is not None and monotonic_time() >= until


def _run_phase(search: Search, launch: Launch, prefetcher: ProposalPrefetcher | None, relay: str | None) -> None:
    scheduler: FIFOScheduler = FIFOScheduler()
    if search.space.search.stop != "none":
        scheduler = StratifiedStopping(search.space.search, search.space.epochs, search.record, search.adopted)
    resources = {"cpu": launch.resources.share.cpus, "gpu": launch.resources.share.gpus}
    # As many proposals lie ready as there are slots: Tune's default of one would start the first wave one by one
    allow_pending_trials(launch.resources.share.concurrent)
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=TuneSearcher(search, launch, prefetcher, relay), scheduler=scheduler, num_samples=-1,
            reuse_actors=True, max_concurrent_trials=launch.most,
            trial_dirname_creator=lambda trial: str(trial.config["trial_id"]),
        ),
        run_config=tune.RunConfig(
            storage_path=str(launch.study_dir / RAY_FOLDER), name="experiment", verbose=0,
            callbacks=[Recorder(search, scheduler, launch)],
            stop=None if launch.seconds is None else TimeLimit(launch.seconds),
        ),
    )  # fmt: skip
    with HeadWatchdog(head_address(), launch.study_dir.name):
        tuner.fit()


def _drop_checkpoints(search: Search, launch: Launch) -> None:
    """Remove what trials that will not go on have left; a worker that is let go saves its last state."""
    for trial in search.record.trials.values():
        if trial.status in TERMINAL and trial.status is not Status.COMPLETED:
            shutil.rmtree(launch.study_dir / TRIALS_FOLDER / trial.trial_id, ignore_errors=True)
