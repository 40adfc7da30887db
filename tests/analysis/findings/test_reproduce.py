from __future__ import annotations

from pathlib import Path

from analysis.findings.reproduce import reproduce_command
from tests.support.synthetic_data import study, trial


class TestReproduce:
    def test_every_kind_of_trial_has_one_command(self):
        record = study(trial("a", seed=3), trial("b"))
        for member in record.trials.values():
            member.specification["views"] = {"seed": 0}
        record.trials["a"].specification |= {"teacher": {"name": "wise"}, "allocation": {"by": "stage"}, "start": {}}
        command = reproduce_command(record, "a", "name", Path("my studies/x"))
        assert command.command == "python sweeps/run.py --reproduce 'my studies/x' a"
        del record.trials["b"].specification["train"]
        assert reproduce_command(record, "b", "n", Path()).why_not == "its record has no train"
