from __future__ import annotations

from pathlib import Path

from analysis.findings.reproduce import reproduce_command
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial


class TestReproduce:
    def test_every_kind_of_trial_has_one_command(self):
        record = study(trial("a", seed=3), trial("b"))
        sections = {"teacher": {"name": "wise", "weights": "f00d"}, "allocation": {"by": "stage", "methods": {}}}
        start = {"from": "dense.pt", "fingerprint": "f"}
        record.trials["a"].specification = change(record.trials["a"].specification, **sections, start=start)
        command = reproduce_command(record, "a", "name", Path("my studies/x"))
        assert command.command == "python sweeps/run.py --reproduce 'my studies/x' a"
        record.trials["b"].specification = None
        record.trials["a"].specification = change(
            record.trials["a"].specification, data={"name": "folder:/elsewhere/holiday photos"}
        )
        assert reproduce_command(record, "a", "name", Path("x")).command == (
            "python sweeps/run.py --reproduce x a --data 'folder:/elsewhere/holiday photos'"
        )
        assert reproduce_command(record, "b", "n", Path()).why_not == "its record has no specification"
