"""A Ray Tune run whose trials do nothing but report: what each way of logging adds to its wall time.

The trials are handed to one reused worker, so nothing but logging differs between two runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback

from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE
from sweeps.tracking.process import TrackingProcess
from tests.support.specifications import plain_specification
from tests.support.synthetic_study import Plan, header, metrics


class JournalLogger:
    """The driver's part of a sweep's records: a line of the journal a report, synced at each trial's end."""

    def __init__(self, folder: Path, uri: str | None):
        self.journal = Journal(folder / JOURNAL_FILE)
        self.journal.append(Event.STUDY, sync=True, **header(Plan()))
        self.tracking = TrackingProcess.start(folder, uri)
        self.begun: set[str] = set()

    def report(self, trial: str, epoch: int, values: dict[str, float]) -> None:
        if trial not in self.begun:
            self.begun.add(trial)
            self.journal.append(
                Event.PROPOSED, trial=trial, role="search", stratum="", parameters={}, counts={}, proposal={},
                specification=plain_specification(method={"name": "cp"}),
            )  # fmt: skip
            self.journal.append(Event.ATTEMPT, trial=trial)
        self.journal.append(Event.EPOCH, trial=trial, epoch=epoch, metrics=values)

    def end(self, trial: str) -> None:
        self.journal.append(Event.FINISHED, sync=True, trial=trial, status="completed", reason="")

    def close(self) -> str | None:
        """None when MLflow has every record, else one line."""
        self.journal.append(Event.CLOSED, sync=True, reason="finished")
        self.journal.close()
        return self.tracking.finish(300)


class Reporter(tune.Trainable):
    """Reports the metrics of an epoch and trains nothing."""

    def setup(self, config: dict[str, Any]) -> None:
        self.epoch, self.reports = 0, config["reports"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        return {**metrics(100 / self.epoch, self.epoch), "epoch": self.epoch, "done": self.epoch == self.reports}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to keep."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing is kept."""


class Recorder(Callback):
    """Carries every report into the journal, as `sweeps.execution.callbacks.Recorder` does."""

    def __init__(self, logger: JournalLogger):
        self.logger = logger

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        epoch = result["epoch"]
        self.logger.report(trial.trial_id, epoch, metrics(100 / epoch, epoch))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.logger.end(trial.trial_id)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def wall_seconds(folder: Path, trials: int, reports: int, callback: Any | None) -> float:
    """Seconds of one Tune run of `trials` times `reports`, with this callback or none."""
    started = time.perf_counter()
    tune.Tuner(
        tune.with_resources(Reporter, {"cpu": 1}),
        param_space={"reports": reports},
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True, max_concurrent_trials=1),
        run_config=tune.RunConfig(
            storage_path=str(folder), name="run", verbose=0, callbacks=[callback] if callback else [],
        ),
    ).fit()  # fmt: skip
    return time.perf_counter() - started


def with_journal(folder: Path, trials: int, reports: int, uri: str | None) -> tuple[float, str | None]:
    """Wall seconds with the journal and its tracker, and what MLflow lacks in the end."""
    logger = JournalLogger(folder / "study", uri)
    seconds = wall_seconds(folder / "ray", trials, reports, Recorder(logger))
    return seconds, logger.close()


def with_callback(folder: Path, trials: int, reports: int, uri: str) -> float:
    """Wall seconds with Ray's own MLflow callback."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return wall_seconds(folder, trials, reports, MLflowLoggerCallback(tracking_uri=uri, experiment_name="bench"))


def start_ray() -> Callable[[], None]:
    """Start Ray on two CPUs of this machine, quietly; returns what stops it."""
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0", RAY_USAGE_STATS_ENABLED="0",
        TUNE_WARN_THRESHOLD_S="1000", RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS="0",
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true", MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_LOGGING_LEVEL="ERROR",
    )  # fmt: skip
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return ray.shutdown
