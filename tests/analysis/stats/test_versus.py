"""One value of a field against all others: paired by seed and by all else, as scipy pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.stats.inference.intervals import Z_95, newcombe_interval
from analysis.stats.inference.paired import paired_error_difference, seed_variance, tango_interval
from analysis.stats.versus import compare_values, comparison_table
from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from tests.support.synthetic_data import study, trial, trial_of_images
from tests.support.synthetic_study import Plan, write_study

BASE, OTHER = (4.0, 3.0, 5.5), (4.5, 3.75, 6.5)


def made(**header):
    """Two methods at two budgets, the second one larger and known from one seed alone, and a reference."""
    trials = [trial("r", 1000, 1.0, method="separable", role=Role.REFERENCE, method__name="separable")]
    for budget, errors in ((0.2, {"thin": BASE, "cp": OTHER}), (0.4, {"thin": BASE[:1], "cp": OTHER[:1]})):
        for name, per_seed in errors.items():
            for seed, error in enumerate(per_seed):
                more = {"budget__params": budget, "method__name": name}
                trials.append(trial(
                    f"{name}{budget}{seed}", int(1000 * budget) + (10 * (name == "cp")), error, method=name, seed=seed,
                    role=Role.REPEAT if seed else Role.SEARCH, **more,
                ))  # fmt: skip
    return study(*trials, **header)


def test_differences_are_paired_by_seed_within_all_else():
    base, other, alone, single = compare_values(made(), "method.name", "thin")
    paired = stats.ttest_rel(OTHER, BASE).confidence_interval(0.95)
    assert (base.value, base.gap, base.other_fields) == ("thin", None, "budget.params 0.2")
    assert (other.gap.low, other.gap.high) == pytest.approx((paired.low, paired.high))
    assert other.verdict == "worse"
    assert (alone.other_fields, alone.error.count, alone.verdict) == ("budget.params 0.4", 1, "base")
    assert (single.gap.mean, single.gap.low, single.verdict) == (0.5, None, "one seed: no interval")


def test_seeds_that_agree_do_not_outdo_few_images():
    row = compare_values(made(data={"val_images": 100}), "method.name", "thin")[1]
    assert row.verdict == "worse, but within the noise of the images"


def test_verdicts_are_corrected_for_their_number():
    """A p-value of 0.03 is enough for one difference, not for one of ten."""
    images = {name: range(40) for name in "cdefghijk"}
    trials = [trial_of_images(name, wrong, method=name, method__name=name) for name, wrong in images.items()]
    base = trial_of_images("thin", range(40), method="thin", method__name="thin")
    lower = trial_of_images("low", range(6, 40), method="low", method__name="low")
    alone = compare_values(study(base, lower, data={"val_images": 100}), "method.name", "thin")
    assert alone[1].p_value == pytest.approx(2 * 0.5**6)
    assert alone[1].verdict == "better, of one seed"
    rows = compare_values(study(base, lower, *trials, data={"val_images": 100}), "method.name", "thin")
    row = next(row for row in rows if row.value == "low")
    assert (row.p_value, row.corrected) == pytest.approx((2 * 0.5**6, 20 * 0.5**6))
    assert row.verdict == "better, but within the noise of 10 comparisons"
    assert "Verdicts are corrected for 10 comparisons (Holm)." in comparison_table(rows)


def test_a_trial_stands_for_every_row_of_a_grid_that_led_to_it():
    found = made()
    found.trials["cp0.40"].aliases = [{"budget.params": 0.8, "method.name": "cp"}]
    found.trials["thin0.40"].aliases = [{"budget.params": 0.8, "method.name": "thin"}]
    rows = compare_values(found, "method.name", "thin")
    assert [(row.other_fields, row.value) for row in rows[-2:]] == [
        ("budget.params 0.8", "thin"),
        ("budget.params 0.8", "cp"),
    ]


def test_what_was_lost_or_marked_takes_no_part():
    found = made()
    found.trials["cp0.21"].broken = "a wrong split"
    found.trials["cp0.22"].status = Status.DIVERGED
    assert compare_values(found, "method.name", "thin")[1].error.count == 1


def test_the_table_marks_what_is_not_as_large():
    text = comparison_table(compare_values(made(), "method.name", "thin"))
    assert "| budget.params 0.2 | cp | 210 * | 2,100 | 4.92 % (1.39 to 8.45) | +0.75 (+0.13 to +1.37) |" in text
    assert text.endswith("\\* over 1 % larger or smaller than the base")


@pytest.mark.parametrize(
    ("field", "base", "message"),
    [("train.lr", "1", "unknown searched field 'train.lr'"), ("method.name", "tt", "choose from: cp, thin")],
)
def test_what_was_not_searched_is_bad_input(field, base, message):
    with pytest.raises(InputError, match=message):
        compare_values(made(), field, base)


def test_the_command(tmp_path, capsys):
    folder = write_study(tmp_path, Plan(trials=12))
    assert main(["against", str(folder), "method.name=tucker"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| all else |")
    assert "reference: separable" in shown
    assert main(["against", str(folder), "method.name"]) == 2
    assert capsys.readouterr().err.startswith("error: the base must be written FIELD=VALUE")


def test_trials_of_other_epochs_are_not_paired_and_none_is_lost():
    """Two studies put together: what no space has searched tells their trials apart."""

    def pair(epochs, errors):
        return [
            trial(f"{name}{epochs}", 100, error, method=name, epochs=epochs, method__name=name)
            for name, error in zip(("thin", "cp"), errors, strict=True)
        ]  # fmt: skip

    rows = compare_values(study(*pair(6, (10.0, 9.0)), *pair(128, (5.5, 5.0))), "method.name", "thin")
    assert [(row.other_fields, row.value) for row in rows] == [
        ("train.epochs 128", "thin"), ("train.epochs 128", "cp"), ("train.epochs 6", "thin"), ("train.epochs 6", "cp"),
    ]  # fmt: skip
    assert [row.gap.mean for row in rows if row.gap] == [-0.5, -1.0]


class TestSameImages:
    """40 and 30 wrong of 100: as two samples within noise; on the same images one is never wrong alone."""

    def rows(self, *more):
        return compare_values(study(
            trial_of_images("b", range(40), method="thin", method__name="thin"),
            trial_of_images("o", range(30), method="cp", method__name="cp"), *more, data={"val_images": 100},
        ), "method.name", "thin")  # fmt: skip

    def test_one_seed_is_compared_by_the_images_on_which_one_alone_is_wrong(self):
        base, other = self.rows()
        assert (other.gap.mean, other.same_images, other.verdict) == (-10, True, "better, of one seed")
        assert (other.gap.low, other.gap.high) == pytest.approx(tango_interval(0, 10, 100, Z_95))
        assert newcombe_interval(30, 40, 100)[1] > 0
        assert base.gap is None
        assert "Differences are on the same validation images" in comparison_table([base, other])

    def test_several_seeds_are_compared_over_seeds_and_images(self):
        seeds = [
            trial_of_images(f"{name}1", wrong, seed=1, role=Role.REPEAT, method=name, method__name=name)
            for name, wrong in (("thin", range(2, 44)), ("cp", range(1, 30)))
        ]
        _, other = self.rows(*seeds)
        wrong = np.zeros((4, 100), dtype=bool)
        wrong[0, :30] = wrong[1, 1:30] = wrong[2, :40] = wrong[3, 2:44] = True
        paired = paired_error_difference(wrong[:2], wrong[2:], seed_variance([wrong[:2], wrong[2:]]))
        assert (other.gap.mean, other.gap.low, other.gap.high) == pytest.approx((-11.5, paired.low, paired.high))
        assert (other.gap.count, other.verdict) == (2, "better")

    def test_a_study_without_wrong_images_is_unpaired_and_says_so(self):
        rows = compare_values(made(data={"val_images": 100}), "method.name", "thin")
        assert not any(row.same_images for row in rows)
        assert "not paired by image: the records do not say which images were wrong." in comparison_table(rows)

    def test_a_study_with_some_says_how_many(self):
        rows = self.rows(trial("x", error=35.0, method="tt", method__name="tt"))
        assert "1 of 2 differences are on the same validation images" in comparison_table(rows)
