"""Methods at equal size: known curves are read off exactly, nothing is read beyond their ends, seeds stay paired."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from scipy import stats

from analysis.findings.study_answers.answer import Answer, answer_text, answers, describe_method_at_size
from analysis.reporting.tables import equal_size_table
from analysis.stats.equal_size import SizeLevel, methods_at_size
from analysis.stats.front import Stratum, collect_points
from analysis.utils import format_percent
from sweeps.records.events import Role
from tests.support.synthetic_data import study, trial


def answered(made):
    return answers(made, collect_points(made))


def answer_of(made):
    return answer_text(made, collect_points(made))


def falling(size: float, slope: float = 3.0) -> float:
    """A known curve: linear in the logarithm of size."""
    return 40 - slope * math.log(size)


def curve(method: str, sizes, seeds=(0,), slope: float = 3.0, shift=lambda seed: 0.0):
    return [
        trial(f"{method}{size}-{seed}", size, falling(size, slope) + shift(seed), method=method, seed=seed, dims=size)
        for size in sizes
        for seed in seeds
    ]


class TestAtSize:
    @given(st.integers(100, 1600), st.sampled_from(["params", "mult_adds"]))
    def test_a_known_curve_is_read_off(self, size, measure):
        points = collect_points(study(*curve("cp", [100, 110, 400, 1600])))
        (found,) = methods_at_size(points, size * (10 if measure == "mult_adds" else 1), measure)
        assert found.error == pytest.approx(falling(size), abs=3.0 * math.log(1 / 0.99) + 1e-9)
        if found.between:
            assert found.error == pytest.approx(falling(size))
            assert found.below.params < size < found.above.params

    @pytest.mark.parametrize("size", [50, 98, 1617, 10_000])
    def test_nothing_beyond_the_ends_of_a_front(self, size):
        assert methods_at_size(collect_points(study(*curve("cp", [100, 400, 1600]))), size) == []

    @pytest.mark.parametrize("size", [99, 101, 1584, 1616])
    def test_a_size_within_a_hundredth_is_the_points_own(self, size):
        (found,) = methods_at_size(collect_points(study(*curve("cp", [100, 1600]))), size)
        assert not found.between
        assert found.error == found.below.error

    def test_only_the_front_of_a_method_is_read(self):
        beaten = trial("bad", 300, 60.0, dims=300)
        points = collect_points(study(*curve("cp", [100, 1600]), beaten))
        (found,) = methods_at_size(points, 300)
        assert found.error == pytest.approx(falling(300))

    def test_the_lowest_error_first_and_references_are_no_method(self):
        separable = trial("s", 100, 0.0, method="separable", role=Role.REFERENCE)
        points = collect_points(study(*curve("cp", [50, 200]), *curve("tucker", [50, 200], slope=4.0), separable))
        assert [each.method for each in methods_at_size(points, 100)] == ["tucker", "cp"]

    def test_seeds_are_interpolated_one_by_one(self):
        shifts = {0: -0.5, 1: 0.25, 2: 0.4}
        points = collect_points(study(*curve("cp", [100, 400], seeds=shifts, shift=shifts.get)))
        (found,) = methods_at_size(points, 200)
        expected = [falling(200) + shift for shift in shifts.values()]
        interval = stats.ttest_1samp(expected, 0.0).confidence_interval(0.95)
        assert found.by_seed == pytest.approx(dict(zip(shifts, expected, strict=True)))
        assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high))
        assert found.error == pytest.approx(found.estimate.mean)

    def test_a_seed_that_one_neighbour_lacks_is_not_invented(self):
        trials = [each for each in curve("cp", [100, 400], seeds=(0, 1, 2)) if each.trial_id != "cp400-1"]
        (found,) = methods_at_size(collect_points(study(*trials)), 200)
        assert sorted(found.by_seed) == [0, 2]

    def test_a_size_is_above_nothing(self):
        with pytest.raises(ValueError, match="at least 1, but got 0"):
            methods_at_size([], 0)


BUDGETS = [{"label": f"params <= {n}", "params": n} for n in (200, 400)]


class TestAnswer:
    def made(self, *trials, strata=BUDGETS, **header):
        return study(*trials, data={"val_images": 10_000}, strata=strata, **header)

    def test_methods_of_other_sizes_are_compared_at_the_budget(self):
        """Shuffle's own best within the budget is 3 log 2 worse than where its front crosses the budget."""
        found = self.made(*curve("cp", [200, 400], slope=3.2), *curve("shuffle", [100, 400]))
        (comparison, *_) = answered(found)[0].comparisons
        assert comparison.gap == pytest.approx(falling(200, 3.2) - falling(200))
        assert comparison.label == "next best method at 200 parameters"
        assert "Next best method at 200 parameters: shuffle 24.1 %, 1.06 points higher" in answer_of(found)
        assert (
            "At 200 parameters, along each method's own front: CP 23.0 %, shuffle 24.1 % (interpolated, 100 to 400)."
        ) in answer_of(found)

    def test_equal_sizes_are_compared_as_they_are(self):
        found = answered(self.made(*curve("cp", [200, 400]), *curve("tucker", [199, 399])))
        assert [answer.level for answer in found] == [None, None]
        assert found[0].comparisons[0].label == "next best method"

    def test_what_does_not_reach_the_size_is_named(self):
        trials = curve("cp", [200, 400]) + curve("tucker", [201, 398]) + curve("shuffle", [100, 250])
        text = answer_of(self.made(*trials))
        assert "At 400 parameters, along each method's own front: " in text
        assert "; of other sizes only: shuffle (100 to 250)." in text

    def test_where_no_front_reaches_the_budget_the_size_is_that_of_the_best(self):
        found = answered(self.made(*curve("cp", [150, 360], slope=4.0), *curve("shuffle", [100, 370])))[1]
        assert found.level.size == 360
        assert found.comparisons[0].gap == pytest.approx(falling(360, 4.0) - falling(360))

    def test_paired_seeds_give_the_interval(self):
        shifts, worse = {0: -3.0, 1: 0.0, 2: 3.0}, {0: -1.5, 1: 2.0, 2: 4.8}
        trials = curve("cp", [200, 400], shifts, shift=shifts.get) + curve(
            "shuffle", [100, 400], worse, shift=worse.get
        )
        (comparison, *_) = answered(self.made(*trials))[0].comparisons
        gaps = [shifts[seed] - worse[seed] for seed in shifts]
        interval = stats.ttest_1samp(gaps, 0.0).confidence_interval(0.95)
        assert comparison.gap == pytest.approx(sum(gaps) / 3)
        assert (comparison.over_seeds.low, comparison.over_seeds.high) == pytest.approx((interval.low, interval.high))
        assert comparison.within_noise is False
        assert comparison.text().endswith(
            f"(95 % interval +{-interval.high:.2f} to +{-interval.low:.2f} over 3 seeds, not corrected for the choice, "
            "beyond noise)"
        )

    def test_seeds_that_agree_do_not_outdo_few_images(self):
        trials = curve("cp", [200, 400], (0, 1, 2)) + curve("tucker", [200, 400], (0, 1, 2), shift=lambda _: 0.3)
        (comparison, *_) = answered(self.made(*trials))[0].comparisons
        assert comparison.over_seeds.beyond_noise is True
        assert comparison.within_noise is True
        assert comparison.text().endswith("0.30 points higher (95 % interval -0.89 to +1.49, within noise)")

    def test_a_limit_on_mult_adds_is_found_in_the_records(self):
        label = "mult-adds <= 0.5 of separable"
        trials = curve("cp", [200, 400], slope=3.2) + curve("shuffle", [100, 400])
        for each in trials:
            each.stratum = label if each.counts["params"] <= 200 else "mult-adds <= 1 of separable"
            each.counts["budget_gap"] = (2000 if each.stratum == label else 4000) - each.counts["mult_adds"]
        strata = [{"label": each, "params": None} for each in (label, "mult-adds <= 1 of separable")]
        asked = {"budget": {"mult_adds": {"choice": [0.5, 1]}, "relative_to": "separable"}}
        found = answered(self.made(*trials, strata=strata, space=asked))[0]
        assert (found.level.size, found.level.measure) == (2000, "mult_adds")
        assert "next best method at 2,000 mult-adds" in found.comparisons[0].label
        assert [each.error for each in found.level.methods] == pytest.approx([falling(200, 3.2), falling(200)])


@given(
    st.lists(st.integers(0, 288), min_size=2, max_size=3),
    st.lists(st.integers(0, 288), min_size=2, max_size=3),
    st.integers(1_001, 1_999),
)
def test_table_csv_and_sentence_give_one_error_that_its_interval_holds(below, above, size):
    """Also where the two points between which a size lies were trained with unequal seeds."""
    trials = [
        trial(f"{params}{seed}", params, 100 * wrong / 288, seed=seed, method__name=str(params))
        for params, errors in ((1_000, below), (2_000, above))
        for seed, wrong in enumerate(errors)
    ]
    for method in methods_at_size(collect_points(study(*trials)), size):
        assert method.estimate is not None
        assert method.estimate.low <= method.error <= method.estimate.high
        level = SizeLevel(size=size, measure="params", methods=(method,), beyond=())
        answer = Answer(
            stratum=Stratum(label="s", params=2_000), best=method.below, share=None, candidates=2, images=288,
            level=level,
        )  # fmt: skip
        table = equal_size_table([answer], [])
        (row,), (texts,) = table.rows, table.texts
        assert row[4] == method.error
        assert row[5] <= row[4] <= row[6]
        assert texts[4].startswith(f"{method.error:.2f} %")
        assert describe_method_at_size(method).endswith(format_percent(method.error))
