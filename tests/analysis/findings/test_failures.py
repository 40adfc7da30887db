from __future__ import annotations

from analysis.findings.failures import group_failures, list_failures
from sweeps.records.events import Status
from tests.support.synthetic_data import study, trial


class TestFailures:
    def test_failures_have_epoch_host_and_reason_and_are_grouped(self):
        lost = trial("a", error=30.0, status=Status.FAILED, reason="worker lost", stratum="small")
        lost.attempts = [{"host": "one"}, {"host": "two"}]
        impossible = trial("b", error=None, status=Status.INFEASIBLE, reason="too small", stratum="small")
        second = trial("c", error=None, status=Status.INFEASIBLE, reason="too small", stratum="small")
        failures = list_failures(study(lost, impossible, second, trial("fine"), trial("s", status=Status.STOPPED)))
        assert [(f.trial_id, f.kind, f.epoch, f.host) for f in failures] == [
            ("a", "failed", 1, "two"), ("b", "infeasible", 0, ""), ("c", "infeasible", 0, ""),
        ]  # fmt: skip
        assert [(g.kind, g.method, g.count, g.reason) for g in group_failures(failures)] == [
            ("infeasible", "CP", 2, "too small"), ("failed", "CP", 1, "worker lost"),
        ]  # fmt: skip
