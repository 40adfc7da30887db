from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from analysis.stats.factors import METHOD
from analysis.stats.front import collect_points
from analysis.stats.inference.intervals import Estimate, error_interval, t_interval
from analysis.stats.paired_effects import ALL_ELSE_EQUAL, BEST_WITHIN_BUDGET, PairedEffect, find_paired_effects
from analysis.stats.seeds import repeated_settings
from sweeps.records.events import Role, Status
from sweeps.records.header import HeaderData, StudyHeader
from sweeps.records.image_errors import encode_wrong_images
from sweeps.records.specification import MethodSection
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial

KNOWN = [0.31, -0.12, 0.55, 0.2, 0.07]


def scipy_interval(values):
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return pytest.approx((found.low, found.high))


class TestInterval:
    def test_against_scipy(self):
        found = t_interval(KNOWN)
        assert (found.low, found.high) == scipy_interval(KNOWN)
        assert found.mean == pytest.approx(sum(KNOWN) / 5)
        assert found.count == 5

    @given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 6)), min_size=2, max_size=9, unique=True))
    def test_against_scipy_anywhere(self, values):
        found = t_interval(values)
        assert (found.low, found.high) == scipy_interval(values)

    def test_one_value_has_no_interval(self):
        found = t_interval([1.5])
        assert (found.mean, found.low, found.high, found.beyond_noise) == (1.5, None, None, None)

    def test_beyond_noise_leaves_zero_out(self):
        assert t_interval([1.0, 1.1, 0.9]).beyond_noise is True
        assert t_interval([-1.0, 1.1, 0.9]).beyond_noise is False

    @pytest.mark.parametrize(("values", "message"), [([], "at least one"), ([1.0, float("nan")], "must be finite")])
    def test_what_has_no_mean(self, values, message):
        with pytest.raises(ValueError, match=message):
            t_interval(values)


def seeds_study(gaps, errors=(4.0, 3.0, 5.0, 2.0, 6.0)):
    """Two decays at each seed, `gaps` apart, and one trial that has no partner."""
    trials = [trial("alone", error=9.0, seed=99, train__decay="plain")]
    for seed, (gap, error) in enumerate(zip(gaps, errors, strict=False)):
        trials.append(trial(f"a{seed}", error=error, seed=seed, train__decay="plain"))
        trials.append(trial(f"b{seed}", error=error + gap, seed=seed, train__decay="scaled"))
    return study(*trials)


class TestAblation:
    def test_paired_by_seed_as_scipy_pairs(self):
        errors = (4.0, 3.0, 5.0, 2.0, 6.0)
        (effect, *_) = find_paired_effects(seeds_study(KNOWN, errors))
        paired = stats.ttest_rel([e + g for e, g in zip(errors, KNOWN, strict=True)], errors).confidence_interval(0.95)
        assert (effect.factor, effect.base, effect.other) == ("train.decay", "plain", "scaled")
        assert (effect.estimate.low, effect.estimate.high) == pytest.approx((paired.low, paired.high))
        assert (effect.pairing, effect.unit, effect.pairs, effect.seeds) == (ALL_ELSE_EQUAL, "seeds", 5, 5)
        assert effect.verdict() == "within noise"

    def test_several_settings_of_one_seed_count_once(self):
        trials = []
        for seed, gap in enumerate((1.0, 3.0)):
            for dims in (2, 3):
                for name, add in (("plain", 0.0), ("scaled", gap + dims)):
                    named = {"method__dims": dims, "train__decay": name}
                    trials.append(trial(f"{seed}{dims}{name}", error=5 + add, seed=seed, dims=dims, **named))
        effect = next(
            e for e in find_paired_effects(study(*trials)) if e.factor == "train.decay" and e.pairing == ALL_ELSE_EQUAL
        )
        assert (effect.pairs, effect.seeds, effect.estimate.count) == (4, 2, 2)
        assert effect.estimate.mean == pytest.approx(4.5)
        assert (effect.estimate.low, effect.estimate.high) == scipy_interval([3.5, 5.5])

    def test_with_one_seed_the_interval_is_over_settings(self):
        trials = [
            trial(f"{dims}{name}", error=5 + dims * add, dims=dims, method__dims=dims, train__decay=name)
            for dims in (2, 3, 4)
            for name, add in (("plain", 0.0), ("scaled", 0.5))
        ]
        effect = next(e for e in find_paired_effects(study(*trials)) if e.factor == "train.decay")
        assert (effect.unit, effect.seeds, effect.estimate.count) == ("settings", 1, 3)
        assert (effect.estimate.low, effect.estimate.high) == scipy_interval([1.0, 1.5, 2.0])
        assert effect.p_value == pytest.approx(stats.ttest_1samp([1.0, 1.5, 2.0], 0.0).pvalue)
        assert effect.verdict() == "worse, but within the noise of 4 comparisons"

    def test_few_images_cannot_show_what_seeds_agree_on(self):
        """Errors of few images lie on a coarse grid: equal differences make an interval of no width."""
        told = {}
        for images in (100, 1_000_000):
            made = seeds_study([-1.0, -1.0, -1.0])
            made.header = StudyHeader(data=HeaderData(val_images=images))
            (effect, *_) = find_paired_effects(made)
            assert effect.errors == pytest.approx((4.0, 3.0))
            told[images] = effect.verdict()
        assert told == {100: "better, but within the noise of the images", 1_000_000: "better"}

    def test_many_effects_are_corrected_for_their_number_and_the_strongest_comes_first(self):
        dice, names = random.Random(3), ("warmup", "momentum", "drop_path", "kd_weight", "label_smoothing")
        rows = itertools.product((0, 1), repeat=5)
        trials = [
            trial("".join(map(str, row)), error=5 + row[4] + 0.5 * row[3] * dice.random() + dice.gauss(0, 0.5),
                  **{f"train__{name}": 0.1 + value / 2 for name, value in zip(names, row, strict=True)})
            for row in rows
        ]  # fmt: skip
        effects = find_paired_effects(study(*trials))
        assert [effect.comparisons for effect in effects] == [5] * 5
        assert effects[0].factor == "train.label_smoothing"
        assert effects[0].corrected == pytest.approx(5 * effects[0].p_value)
        assert effects[0].verdict() == "worse"
        p_values = [effect.p_value for effect in effects]
        assert p_values == sorted(p_values)

    def test_what_only_many_comparisons_found_is_called_noise(self):
        effect = PairedEffect(
            factor="train.lr", base="1", other="2", pairing=ALL_ELSE_EQUAL, unit="seeds", pairs=3, seeds=3,
            estimate=Estimate(mean=1.0, low=0.1, high=1.9, count=3), errors=(5.0, 6.0), p_value=0.03, corrected=0.21,
            comparisons=7,
        )  # fmt: skip
        assert effect.verdict() == "worse, but within the noise of 7 comparisons"

    def test_a_seed_that_only_the_front_has_does_not_weigh_as_much_as_all(self):
        trials = [
            trial(f"{dims}{name}{seed}", error=5 + gap, dims=dims, method__dims=dims, train__decay=name, seed=seed)
            for dims, seeds, add in ((2, (0, 1, 2), 9.0), (3, (0,), 1.0), (4, (0,), 2.0), (5, (0,), 3.0))
            for seed in seeds
            for name, gap in (("plain", 0.0), ("scaled", add))
        ]
        effect = next(e for e in find_paired_effects(study(*trials)) if e.factor == "train.decay")
        assert (effect.unit, effect.seeds, effect.pairs) == ("settings", 1, 4)
        assert effect.estimate.mean == pytest.approx((9 + 1 + 2 + 3) / 4)

    def test_recorded_images_count_in_the_interval_too(self):
        made = seeds_study([1.0, 1.0, 1.0], errors=(4.0,) * 3)
        for record in made.trials.values():
            wrong = np.zeros(100, dtype=bool)
            wrong[: round(record.val_error)] = True
            record.wrong_images["val"] = encode_wrong_images(wrong)
        (effect, *_) = find_paired_effects(made)
        assert effect.estimate.mean == pytest.approx(1.0)
        assert effect.estimate.low < 0 < effect.estimate.high  # one image of a hundred, in every seed the same
        assert effect.verdict() == "within noise"

    def test_methods_bear_their_names_for_readers(self):
        trials = [
            trial(name, error=error, method=name, method__name=name) for name, error in (("acdc", 5.0), ("tucker", 4.0))
        ]
        (effect,) = [each for each in find_paired_effects(study(*trials)) if each.factor == "method.name"]
        assert (effect.base, effect.other) == ("ACDC", "Tucker")

    def test_the_best_of_each_budget_where_nothing_else_pairs(self):
        trials = [
            trial(f"{stratum}{dims}{n}", error=10 - dims + n + add, stratum=stratum, method__dims=dims, size=n)
            for stratum, add in (("small", 0.2), ("large", 0.0))
            for dims in (2, 3)
            for n in (dims, dims + 10)
        ]
        (effect,) = [e for e in find_paired_effects(study(*trials)) if e.factor == "method.dims"]
        assert (effect.pairing, effect.unit, effect.estimate.count) == (BEST_WITHIN_BUDGET, "budgets", 2)
        assert effect.estimate.mean == pytest.approx(0.0)

    def test_methods_of_more_settings_than_others_are_not_paired_all_else_equal(self):
        """Tensor trains in 2 to 5 dims against one bottleneck: 4, 5, 9, 12 % have the best, and a worse mean."""
        trains = [
            trial(f"tt{dims}-{seed}", error=error, method="tensor_train", dims=dims, seed=seed, stratum="s",
                  method__name="tensor_train", method__dims=dims)
            for dims, error in zip((2, 3, 4, 5), (4.0, 5.0, 9.0, 12.0), strict=True) for seed in range(3)
        ]  # fmt: skip
        bottleneck = [
            trial(f"b-{seed}", error=6.0, method="bottleneck", dims=None, seed=seed, stratum="s",
                  method__name="bottleneck")
            for seed in range(3)
        ]  # fmt: skip
        effects = [effect for effect in find_paired_effects(study(*trains, *bottleneck)) if effect.factor == METHOD]
        assert [(effect.pairing, effect.other, effect.estimate.mean) for effect in effects] == [
            (BEST_WITHIN_BUDGET, "tensor train", -2.0)
        ]

    def test_only_what_trained_to_its_end_and_is_sound(self):
        left = seeds_study([1.0, 1.0])
        left.trials["b0"].status = Status.STOPPED
        left.trials["b1"].broken = "a full disk"
        assert [e for e in find_paired_effects(left) if e.pairing == ALL_ELSE_EQUAL] == []

    def test_a_field_drawn_from_a_range_is_no_factor(self):
        trials = [trial(f"t{n}", error=5 + n, train__lr=0.1 + n / 100) for n in range(4)]
        assert find_paired_effects(study(*trials)) == []
        ranges = {"train": {"lr": {"log_uniform": [0.01, 1]}}}
        again = [trial(f"s{n}", error=5 + n, train__lr=0.1 + n // 2) for n in range(4)]
        assert find_paired_effects(study(*again, space=ranges)) == []
        assert find_paired_effects(study(*again, space={"train": {"lr": {"choice": [0.1, 1.1]}}})) != []

    def effects(self, *trials, pairing=ALL_ELSE_EQUAL):
        found = [e for e in find_paired_effects(study(*trials)) if e.pairing == pairing]
        return {(e.factor, e.base, e.other): round(e.estimate.mean, 6) for e in found}

    def test_what_neither_of_two_collated_studies_searched_is_paired_too(self):
        """Nothing is in `parameters`: the trials come of studies with other decays and other lengths."""
        trials = [trial(name, error=error) for name, error in (("a", 4.0), ("b", 3.0), ("c", 1.0))]
        recipes = ({"weight_decay": 5e-4}, {"weight_decay": 1e-3}, {"weight_decay": 1e-3, "epochs": 9})
        for each, train in zip(trials, recipes, strict=True):
            each.specification = change(each.specification, train=train)
        other_data = trial("d", error=50.0)
        other_data.specification = change(other_data.specification, data={"fingerprint": "beef"})
        made = [*trials, trials[1], other_data]
        assert self.effects(*made) == {
            ("train.epochs", "1", "9"): -2.0, ("train.weight_decay", "0.0005", "0.001"): -1.0,
        }  # fmt: skip

    def test_two_differences_are_no_pair(self):
        plain = trial("a", error=4.0, dims=2, method__dims=2, train__decay="plain")
        both = trial("b", error=3.0, dims=3, method__dims=3, train__decay="scaled")
        assert self.effects(plain, both) == {}

    def test_a_size_that_was_solved_is_no_second_difference(self):
        trials = [
            trial(f"{name}{dims}", error=error, method=name, scale=error / 10, budget__params=0.2, **of_method)
            for name, dims, error, of_method in (
                ("tensor_train", 2, 4.0, {"dims": 2, "method__dims": 2, "method__name": "tensor_train"}),
                ("tensor_train", 3, 2.0, {"dims": 3, "method__dims": 3, "method__name": "tensor_train"}),
                ("bottleneck", 0, 6.0, {"dims": None, "method__dims": 3, "method__name": "bottleneck"}),
            )
        ]
        for each in trials:
            each.counts["budget_gap"] = 1
        method = MethodSection(name="bottleneck", rank_scale=0.6)
        trials[2].specification = trials[2].specification.model_copy(update={"method": method})
        assert self.effects(*trials) == {("method.dims", "2", "3"): -2.0}
        one_of_each = self.effects(trials[0], trials[2])  # of two settings of a method, neither is "all else equal"
        assert one_of_each == {("method.name", "bottleneck", "tensor train"): -2.0}

    def test_a_thinner_network_differs_in_the_method_alone(self):
        solved = {"dims": None, "budget__params": 0.2}
        trials = [
            trial("a", error=4.0, method="separable", width=0.4, method__name="thin_separable", **solved),
            trial("b", error=3.0, method="shuffle", method__name="shuffle", **solved),
        ]
        for each in trials:
            each.counts["budget_gap"] = 1
        assert self.effects(*trials) == {("method.name", "shuffle", "thin separable"): 1.0}

    def test_a_teacher_comes_with_its_weight(self):
        alone, taught = (
            trial("a", error=4.0, train__attention_weight=0),
            trial("b", error=3.5, train__attention_weight=60),
        )
        taught.specification = change(taught.specification, teacher={"name": "wise", "weights": "f00d"})
        assert self.effects(alone, taught) == {("train.attention_weight", "0", "60"): -0.5}

    @pytest.mark.parametrize(("asked", "values"), [("decay", ["plain", "scaled"]), ("scaled_decay", [False, True])])
    def test_the_decay_of_factors_in_its_other_spelling_is_no_second_difference(self, asked, values):
        """A recipe holds both, whichever of them the space gives."""
        trials = [trial(f"{value}", error=5.0 + index, **{f"train__{asked}": value})
                  for index, value in enumerate(values)]  # fmt: skip
        for each, value in zip(trials, values, strict=True):
            scaled = value in (True, "scaled")
            both = {"decay": "scaled" if scaled else "plain", "scaled_decay": scaled}
            each.specification = change(each.specification, train=both)
        (effect,) = find_paired_effects(study(*trials))
        assert (effect.factor, effect.pairing, effect.estimate.mean) == (f"train.{asked}", ALL_ELSE_EQUAL, 1.0)

    def test_weights_come_with_the_start_from_them(self):
        anew, trained = trial("a", error=4.0, start__how="scratch"), trial("b", error=3.5, start__how="dense")
        trained.specification = change(trained.specification, start={"from": "trial:c", "fingerprint": "c"})
        assert self.effects(anew, trained) == {("start.how", "dense", "scratch"): 0.5}

    def test_a_lucky_seed_is_not_the_best_of_its_budget(self):
        trials = [
            trial(f"{value}{seed}", error=error, seed=seed, train__lr=value, size=value, stratum="s",
                  role=Role.REPEAT if seed else Role.SEARCH)
            for value, errors in ((0.1, (1.0, 9.0)), (0.2, (4.0, 4.0)))
            for seed, error in enumerate(errors)
        ]  # fmt: skip
        assert self.effects(*trials, pairing=BEST_WITHIN_BUDGET)["train.lr", "0.1", "0.2"] == -1.0

    def test_a_repeat_of_a_reference_is_no_ablation(self):
        same = {"method": "separable", "dims": None, "method__name": "separable"}
        reference = trial("r", role=Role.REFERENCE, **same)
        again = trial("r2", seed=1, **same)
        other = trial("t", seed=1, method__name="cp")
        assert find_paired_effects(study(reference, again, other)) == []


class TestRepeats:
    def test_means_and_the_paired_gap(self):
        trials = []
        for seed, (own, base) in enumerate(((4.0, 3.0), (5.0, 3.5), (4.5, 2.5))):
            trials.append(trial(f"t{seed}", error=own, seed=seed))
            trials.append(trial(f"s{seed}", 1000, base, seed=seed, method="separable", dims=None, role=Role.REFERENCE))
        trials.append(trial("once", 50, 1.0, dims=3))
        found = {each.point.trial_id: each for each in repeated_settings(collect_points(study(*trials)))}
        assert set(found) == {"t0", "s0"}
        assert (found["t0"].gap.low, found["t0"].gap.high) == scipy_interval([1.0, 1.5, 2.0])
        assert found["t0"].val_error.mean == pytest.approx(4.5)
        assert found["s0"].gap is None
        assert found["t0"].seeds == (0, 1, 2)


def test_the_interval_of_an_error_ends_where_errors_do():
    estimate = error_interval([70.0, 80.0])
    assert (estimate.low, estimate.mean, estimate.high) == (pytest.approx(11.469, abs=1e-3), 75.0, 100.0)
    assert error_interval([1.0, 3.0]).low == 0.0
