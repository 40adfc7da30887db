from __future__ import annotations

from pathlib import Path

from analysis.findings.reproduce import reproduce_command
from tests.support.synthetic_data import study, trial


class TestReproduce:
    def test_one_command_whatever_the_trial_is(self):
        made = study(trial("a", seed=3), trial("b"))
        for each in made.trials.values():
            each.specification["views"] = {"seed": 0}
        made.trials["a"].specification |= {"teacher": {"name": "wise"}, "allocation": {"by": "stage"}, "start": {}}
        found = reproduce_command(made, "a", "name", Path("my studies/x"))
        assert found.command == "python sweeps/run.py --reproduce 'my studies/x' a"
        del made.trials["b"].specification["train"]
        assert reproduce_command(made, "b", "n", Path()).why_not == "its record has no train"
