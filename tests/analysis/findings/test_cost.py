from __future__ import annotations

import pytest

from analysis.findings.cost import study_cost
from sweeps.records.events import Status
from tests.support.synthetic_data import study, trial


class TestCost:
    def test_hours_starts_and_speed(self):
        completed = trial("a", epochs=3, seconds=4.0)
        for metrics in completed.epochs.values():
            metrics["images_per_second"] = 50.0
        completed.attempts = [{"device": "cuda", "start_seconds": 2.0}, {"device": "cuda", "start_seconds": 1.0}]
        completed.proposed_at, completed.finished_at = 100.0, 130.0
        failed = trial("b", error=None, status=Status.FAILED)
        failed.attempts = [{"device": "cuda", "start_seconds": 5.0}]
        record = study(completed, failed, data={"train_images": 100}, space={"resources": {"gpus_per_trial": 0.25}})
        cost = study_cost(record)
        assert [(o.status, o.trials, o.epochs, o.seconds) for o in cost.outcomes] == [
            (Status.COMPLETED, 1, 3, 12.0), (Status.FAILED, 1, 0, 0.0),
        ]  # fmt: skip
        assert (cost.train_seconds, cost.start_seconds, cost.attempts, cost.again) == (12.0, 8.0, 3, 1)
        assert cost.gpu_hours == pytest.approx(0.25 * 20 / 3600)
        assert cost.start_share == pytest.approx(0.4)
        assert (cost.wall_seconds, cost.images_per_second, cost.throughput) == (30.0, 50.0, 10.0)

    def test_gpu_time_is_zero_on_a_cpu_and_unknown_without_a_record(self):
        on_cpu = trial("a")
        on_cpu.attempts = [{"device": "cpu"}]
        assert study_cost(study(on_cpu)).gpu_hours == 0
        unknown = study_cost(study(trial("a")))
        assert (unknown.gpu_hours, unknown.wall_seconds, unknown.images_per_second) == (None, None, None)

    def test_card_hours_are_summed_attempt_by_attempt(self):
        """A long attempt on a quarter of a card, a short one on a whole card, one on the CPU."""
        resumed = trial("a")
        resumed.epochs = {n: {"val_error": 5.0, "epoch_seconds": 10.0, "time": 100.0 + 10 * n} for n in range(1, 101)}
        resumed.attempts = [
            {"device": "cuda", "gpus": 0.25, "start_seconds": 4.0, "time": 110.0},
            {"device": "cuda", "gpus": 1.0, "start_seconds": 2.0, "time": 1100.0},  # trains the last epoch
        ]
        on_cpu = trial("b")
        on_cpu.epochs = {1: {"val_error": 5.0, "epoch_seconds": 50.0, "time": 90.0}}
        on_cpu.attempts = [{"device": "cpu", "gpus": 0.0, "start_seconds": 1.0, "time": 90.0}]
        cost = study_cost(study(resumed, on_cpu))
        seconds = 0.25 * (4 + 990) + 1.0 * (2 + 10)
        assert cost.gpu_hours == pytest.approx(seconds / 3600)
        assert cost.gpu_share == pytest.approx(seconds / 1057)
