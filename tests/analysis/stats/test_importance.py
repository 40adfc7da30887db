from __future__ import annotations

import dataclasses

import pytest

from analysis.stats.importance import MIN_TRIALS, field_importances, searched_settings
from sweeps.records.events import Role
from tests.support.synthetic_data import study, trial


class TestImportance:
    def many(self, count):
        values = [(n % 3, (n * 7) % 11) for n in range(count)]
        return study(*(
            trial(f"t{n}", error=10 + 5 * dims + 0.01 * noise, method__dims=2 + dims, train__decay=float(noise))
            for n, (dims, noise) in enumerate(values)
        ))  # fmt: skip

    def test_what_decides_comes_first(self):
        found = field_importances(searched_settings(self.many(60)))
        assert [each.evaluator.partition(",")[0] for each in found] == ["PED-ANOVA", "mean decrease of impurity"]
        for each in found:
            assert each.shares[0][0] == "method.dims"
            assert sum(share for _, share in each.shares) == pytest.approx(1)
            assert each.trials == 60

    def test_too_few_trials_are_said(self):
        (only,) = field_importances(searched_settings(self.many(MIN_TRIALS - 1)))
        assert only.shares == ()
        assert (
            "needs at least 20 completed settings and two searched fields that vary; this study has 19 and 2"
            in only.note
        )

    def test_seeds_are_averaged_first(self):
        once, again = self.many(60), self.many(60)
        for name in once.trials:
            once.trials[name].point_id = again.trials[name].point_id = f"point of {name}"
        for number, each in enumerate(list(again.trials.values())):
            other = dataclasses.replace(each, trial_id=f"r{number}", role=Role.REPEAT, epochs={1: dict(each.epochs[1])})
            other.specification = {**each.specification, "seed": 1}
            other.epochs[1]["val_error"] += 3.0
            each.epochs[1]["val_error"] -= 3.0
            again.trials[other.trial_id] = other
        (first, *_), (second, *_) = (
            field_importances(searched_settings(once)),
            field_importances(searched_settings(again)),
        )
        assert (first.trials, first.seeds, second.trials, second.seeds) == (60, 1, 60, 2)
        assert dict(second.shares) == pytest.approx(dict(first.shares))

    def test_within_budgets_the_budget_is_left_out(self):
        made = self.many(60)
        for n, each in enumerate(made.trials.values()):
            each.stratum = f"s{n % 2}"
            each.parameters["budget.params"] = n % 2
        within = [each for each in field_importances(searched_settings(made)) if each.within_budgets]
        assert len(within) == 2
        assert all("budget.params" not in dict(each.shares) for each in within)
