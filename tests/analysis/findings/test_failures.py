from __future__ import annotations

from analysis.findings.failures import group_failures, list_failures
from sweeps.records.events import Status
from tests.support.synthetic_data import study, trial


class TestFailures:
    def test_where_and_why(self):
        lost = trial("a", error=30.0, status=Status.FAILED, reason="worker lost", stratum="small")
        lost.attempts = [{"host": "one"}, {"host": "two"}]
        impossible = trial("b", error=None, status=Status.INFEASIBLE, reason="too small", stratum="small")
        again = trial("c", error=None, status=Status.INFEASIBLE, reason="too small", stratum="small")
        found = list_failures(study(lost, impossible, again, trial("fine"), trial("s", status=Status.STOPPED)))
        assert [(f.trial_id, f.kind, f.epoch, f.host) for f in found] == [
            ("a", "failed", 1, "two"), ("b", "infeasible", 0, ""), ("c", "infeasible", 0, ""),
        ]  # fmt: skip
        assert [(g.kind, g.method, g.count, g.reason) for g in group_failures(found)] == [
            ("infeasible", "CP", 2, "too small"), ("failed", "CP", 1, "worker lost"),
        ]  # fmt: skip
