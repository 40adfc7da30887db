"""A search runs in phases: what ran out of memory is trained with a larger share, and then the search goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeps.execution import tuner
from sweeps.execution.scheduler import StratifiedStopping
from sweeps.execution.trial_config import TrialConfig, trial_config
from sweeps.records import TRIALS_FOLDER, Status

METRICS = {
    "val_error": 10.0, "val_loss": 1.0, "train_error": 5.0, "train_loss": 0.5, "lr": 0.1, "images_per_second": 1000.0,
    "epoch_seconds": 1.0,
}  # fmt: skip


class Tune:
    """Stands for Ray Tune: it trains one trial after the other, each of which ends as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.end: Callable[[TrialConfig, float], str] = lambda config, gpus: "completed"
        self.phases: list[dict[str, Any]] = []
        monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")
        monkeypatch.setattr(tuner.tune, "with_resources", lambda trainable, resources: resources)
        monkeypatch.setattr(tuner.tune, "Tuner", self.tuner)
        monkeypatch.setattr(tuner, "keep_trial_errors_in_memory", lambda: None)
        monkeypatch.setattr(tuner, "head_address", lambda: "head:6379")
        monkeypatch.setattr(tuner, "raylet_address", lambda: None)
        monkeypatch.setattr(tuner, "HeadWatchdog", lambda *_, **_named: nullcontext())

    def tuner(self, resources: dict[str, float], *, tune_config: Any, run_config: Any) -> Any:
        self.phases.append({**resources, "scheduler": tune_config.scheduler, "stop": run_config.stop, "trials": []})
        self.searcher, (self.recorder,) = tune_config.search_alg, run_config.callbacks
        return self

    def fit(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Tune sets a handler of its own and leaves it
        while (config := self.searcher.suggest("x")) != Searcher.FINISHED:
            if config is None:
                continue
            trial, phase = trial_config(config), self.phases[-1]
            phase["trials"].append(trial.trial_id)
            result = {"trial": trial.trial_id, "epoch": 1, "metrics": METRICS, "reason": "so"}
            self.recorder.on_trial_result(0, [], None, {**result, "outcome": self.end(trial, phase["gpu"])})


@pytest.fixture
def ray_tune(monkeypatch: pytest.MonkeyPatch) -> Tune:
    return Tune(monkeypatch)


def test_what_runs_out_of_memory_is_trained_after_the_others_with_the_larger_share(ray_tune, open_search, execution):
    search = open_search()
    large: list[str] = []

    def end(config: TrialConfig, gpus: float) -> str:
        if gpus < 0.5 and len(large) < 2:
            large.append(config.trial_id)
            return "out_of_memory"
        return "completed"

    ray_tune.end = end
    assert tuner.run_search(search, execution()) is False
    first, second = ray_tune.phases
    assert (first["gpu"], len(first["trials"])) == (0.25, 1 + 6)
    assert (second["gpu"], second["trials"]) == (0.5, large)
    assert {trial.status for trial in search.record.trials.values()} == {Status.COMPLETED}


def test_what_no_share_holds_ends_out_of_memory_and_the_search_is_over(ray_tune, open_search, execution):
    search = open_search(references=[])
    ray_tune.end = lambda config, gpus: "out_of_memory"
    assert tuner.run_search(search, execution()) is False
    assert [len(phase["trials"]) for phase in ray_tune.phases] == [6, 6]
    assert {trial.status for trial in search.record.trials.values()} == {Status.OUT_OF_MEMORY}
    assert search.is_over()


@pytest.mark.parametrize("interrupted", [False, True])
def test_of_ended_trials_only_the_weights_of_complete_ones_stay(
    ray_tune, open_search, execution, tmp_path, interrupted
):  # fmt: skip
    search = open_search()
    ends = iter(["completed", "diverged", "completed", "failed", "interrupt" if interrupted else "completed"])
    outcomes: dict[str, str] = {}

    def end(config: TrialConfig, gpus: float) -> str:
        (tmp_path / TRIALS_FOLDER / config.trial_id).mkdir(parents=True)
        outcomes[config.trial_id] = next(ends, "completed")
        if outcomes[config.trial_id] == "interrupt":
            raise KeyboardInterrupt
        return outcomes[config.trial_id]

    ray_tune.end = end
    (tmp_path / tuner.RAY_FOLDER).mkdir()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        tuner.run_search(search, execution())
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / tuner.RAY_FOLDER).exists()
    remaining = {path.name for path in (tmp_path / TRIALS_FOLDER).iterdir()}
    assert remaining == {name for name, outcome in outcomes.items() if outcome not in ("diverged", "failed")}
    assert not search.reserved  # nothing lies ready for a driver that has ended


@pytest.mark.parametrize(("stop", "scheduler"), [("none", FIFOScheduler), ("median", StratifiedStopping)])
@pytest.mark.parametrize("seconds", [None, 3600])
def test_the_rule_of_the_space_and_the_limit_of_time_reach_tune(
    ray_tune, open_search, execution, stop, scheduler, seconds
):
    tuner.run_search(open_search(search={"trials": 1, "stop": stop}), execution(seconds=seconds))
    (phase,) = ray_tune.phases
    assert type(phase["scheduler"]) is scheduler
    assert (phase["stop"] is None) == (seconds is None)
    assert phase["stop"] is None or (phase["stop"].stop_all(), phase["stop"]("x", {})) == (False, False)
