from __future__ import annotations

import dataclasses

import pytest

from analysis.stats.importance import MIN_TRIALS, field_importances, searched_settings
from sweeps.records.events import Role
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial


class TestImportance:
    def many(self, count):
        values = [(n % 3, (n * 7) % 11) for n in range(count)]
        return study(*(
            trial(f"t{n}", error=10 + 5 * dims + 0.01 * noise, method__dims=2 + dims, train__label_smoothing=noise / 20)
            for n, (dims, noise) in enumerate(values)
        ))  # fmt: skip

    def test_the_most_important_field_comes_first(self):
        importances = field_importances(searched_settings(self.many(60)))
        assert [importance.evaluator.partition(",")[0] for importance in importances] == [
            "PED-ANOVA",
            "mean decrease of impurity",
        ]
        for importance in importances:
            assert importance.shares[0][0] == "method.dims"
            assert sum(share for _, share in importance.shares) == pytest.approx(1)
            assert importance.trials == 60

    def test_too_few_trials_give_a_note_and_no_shares(self):
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
        for number, member in enumerate(list(again.trials.values())):
            other = dataclasses.replace(
                member, trial_id=f"r{number}", role=Role.REPEAT, epochs={1: dict(member.epochs[1])}
            )
            other.specification = change(member.specification, seed=1)
            other.epochs[1]["val_error"] += 3.0
            member.epochs[1]["val_error"] -= 3.0
            again.trials[other.trial_id] = other
        (first, *_), (second, *_) = (
            field_importances(searched_settings(once)),
            field_importances(searched_settings(again)),
        )
        assert (first.trials, first.seeds, second.trials, second.seeds) == (60, 1, 60, 2)
        assert dict(second.shares) == pytest.approx(dict(first.shares))

    def test_within_budgets_the_budget_is_left_out(self):
        record = self.many(60)
        for n, member in enumerate(record.trials.values()):
            member.stratum = f"s{n % 2}"
            member.parameters["budget.params"] = n % 2
        importances = field_importances(searched_settings(record))
        within = [importance for importance in importances if importance.within_budgets]
        assert len(within) == 2
        assert all("budget.params" not in dict(importance.shares) for importance in within)

    def test_fields_that_only_some_settings_have_are_named(self):
        record = self.many(60)
        record.trials["t0"].parameters["method.rank_scale"] = 0.3
        for importance in field_importances(searched_settings(record)):
            assert importance.left_out == ("method.rank_scale",)
            assert "method.rank_scale" not in dict(importance.shares)
