from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from analysis.findings.answer import answers
from analysis.findings.failures import BROKEN, list_failures
from analysis.reporting.contents import build_report, summarise
from analysis.reporting.front_data import front_plot
from analysis.reporting.tables import budget_table, equal_size_table, format_point_error
from analysis.stats.front import collect_points, pareto_front, study_strata
from analysis.stats.intervals import newcombe_interval
from lowrank.utils.pareto import non_dominated
from sweeps.records.events import Role, Status
from sweeps.records.load import load_study
from tests.support.synthetic_data import SEPARABLE, study, trial
from tests.support.synthetic_study import Plan, write_study


def answered(made):
    return answers(made, collect_points(made))


def plotted(made, measure="params"):
    return front_plot(made, collect_points(made), measure)


class TestFronts:
    def test_mult_adds_have_a_front_of_their_own(self):
        small, cheap = trial("small", 10, 5.0), trial("cheap", 20, 5.0)
        small.counts["mult_adds"], cheap.counts["mult_adds"] = 900, 100
        points = collect_points(study(small, cheap))
        assert [p.trial_id for p in pareto_front(points)] == ["small"]
        assert [p.trial_id for p in pareto_front(points, "mult_adds")] == ["cheap"]
        assert plotted(study(small, cheap), "mult_adds").x_label == "mult-adds of one image"

    def test_broken_trials_are_in_no_figure(self):
        bad = trial("bad", 10, 0.1)
        bad.broken = "wrong labels"
        made = study(bad, trial("good", 10, 5.0))
        assert [p.trial_id for p in collect_points(made)] == ["good"]
        assert [(f.trial_id, f.kind, f.reason) for f in list_failures(made)] == [("bad", BROKEN, "wrong labels")]

    def test_thinner_networks_are_a_line(self):
        references = [
            trial(f"s{width}", int(1000 * width), 9 - 5 * width, method="separable", dims=None, width=width,
                  role=Role.REFERENCE)
            for width in (0.25, 0.5, 1.0)
        ]  # fmt: skip
        plot = plotted(study(trial("t", 300, 5.0), *references))
        assert plot.thin == (("thinner separable", ((250.0, 7.75), (500.0, 6.5), (1000.0, 4.0))),)
        assert [name for name, _, _ in plot.references] == [
            "separable, width 0.25",
            "separable, width 0.5",
            "separable",
        ]

    def test_limits_are_whole_numbers(self):
        assert study_strata(study(strata=[{"label": "s", "params": 10.0}]))[0].params == 10


class TestSummary:
    def said(self, *trials):
        made = study(*trials, data={"val_images": 100})
        return summarise(made, collect_points(made), answered(made), [])

    def test_the_smallest_that_cannot_be_told_apart(self):
        base = trial("s", SEPARABLE, 5.0, method="separable", dims=None, role=Role.REFERENCE)
        first = self.said(base, trial("tiny", 10, 60.0), trial("small", 100, 7.0), trial("large", 500, 5.0))[0]
        assert first.startswith(
            "The smallest network that 100 validation images do not show to be worse than the separable network"
        )
        assert "CP, 2 dims with 100 parameters (7.00 %): 10.0 times smaller, +2.00 points" in first

    def test_none_is_as_good(self):
        base = trial("s", SEPARABLE, 5.0, method="separable", dims=None, role=Role.REFERENCE)
        said = self.said(base, trial("tiny", 10, 60.0))
        assert "stays 55.00 points behind" in said[0]
        assert not any(line.startswith("Not shown to be worse") for line in said)  # it is

    def test_a_larger_network_compresses_nothing(self):
        base = trial("s", SEPARABLE, 5.0, method="separable", dims=None, role=Role.REFERENCE)
        said = self.said(base, trial("tiny", 10, 60.0), trial("huge", 10 * SEPARABLE, 5.0))
        assert "No network of the front that is smaller is as good as the separable network" in said[0]
        assert "CP, 2 dims with 10 parameters (60.0 %), stays 55.00 points behind" in said[0]

    def test_thinner_networks(self):
        thin = trial("s", 500, 9.0, method="separable", dims=None, width=0.5, role=Role.REFERENCE)
        said = " ".join(self.said(thin, trial("t", 100, 5.0)))
        low, high = newcombe_interval(5.0, 9.0, 100)
        assert "substitution is better at 1 of 1 sizes: up to 500 parameters CP, 2 dims 5.00 %, separable" in said
        assert f"width 0.5 9.00 % (-4.00 points, 95 % interval {low:+.1f} to {high:+.1f})" in said
        assert "No thinner network" in " ".join(self.said(trial("t", 100, 5.0)))

    def test_the_study_s_own_network_is_not_a_thinner_one(self):
        """A study of a network of width 0.25 has its references at that width."""
        base = trial("s", SEPARABLE, 5.0, method="separable", dims=None, width=0.25, role=Role.REFERENCE)
        thin = trial("u", 120, 9.0, method="separable", dims=None, width=0.1, role=Role.REFERENCE)
        own = [base, trial("t", 100, 5.0, width=0.25)]
        said = [
            " ".join(summarise(made, collect_points(made), answered(made), [], []))
            for made in (study(*trials, network={"width": 0.25}) for trials in (own, [*own, thin]))
        ]
        assert "No thinner network was trained" in said[0]
        assert "width" not in said[0]
        assert "up to 120 parameters CP, 2 dims 5.00 %, separable, width 0.1 9.00 %" in said[1]

    def test_budgets_without_a_result_are_said(self):
        made = study(
            trial("t", 300, 5.0), trial("u", 90, 9.0, status=Status.STOPPED),
            strata=[{"label": f"params <= {limit}", "params": limit} for limit in (50, 70, 100, 400, 500)],
        )  # fmt: skip
        said = summarise(made, collect_points(made), answered(made), [], [])
        assert "Up to 50, 70 and 100 parameters: no trial was trained to its end." in said
        assert "Up to 500 parameters: the same." in said

    def test_methods_of_other_sizes_are_told_at_one_size(self):
        made = study(
            trial("a", 200, 4.0), trial("b", 400, 2.0), trial("c", 100, 6.0, method="shuffle"),
            trial("d", 400, 3.0, method="shuffle"), strata=[{"label": "s", "params": 200}],
        )  # fmt: skip
        (said,) = [
            line for line in summarise(made, collect_points(made), answered(made), []) if line.startswith("Up to 200")
        ]
        assert said == (
            "Up to 200 parameters: CP, 2 dims, 4.00 %, 0.50 points better than shuffle at equal size. At 200 "
            "parameters, along each method's own front: CP 4.00 %, shuffle 4.50 %."
        )
        rows = equal_size_table(answered(made)).rows
        assert [row[1:5] for row in rows] == [("params", 200, "cp", 4.0), ("params", 200, "shuffle", 4.5)]
        assert [row[8:] for row in rows] == [(False, 200, 200), (True, 100, 400)]

    def test_thinner_networks_that_were_searched_themselves(self):
        made = study(
            trial("a", 95, 5.0), trial("t", 98, 3.0, method="dense", dims=None, width=0.2, method__name="thin_dense"),
            trial("b", 190, 2.0), trial("u", 180, 2.5, method="dense", dims=None, width=0.3, method__name="thin_dense"),
            strata=[{"label": "s", "params": 100}, {"label": "l", "params": 200}],
        )  # fmt: skip
        said = " ".join(summarise(made, collect_points(made), answered(made), []))
        assert "substitution is better at 1 of 2 sizes: up to 100 parameters CP, 2 dims 5.00 %, thin dense" in said

    def test_what_one_choice_changed_is_said(self):
        pairs = [
            trial(f"{value}{seed}", error=5.0 + seed - (value > 0) * (1 + 0.1 * seed), seed=seed,
                  train__attention_weight=value)
            for value in (0, 60) for seed in (0, 1)
        ]  # fmt: skip
        text = build_report(study(*pairs), Path()).summary
        assert (
            "train.attention_weight 60 instead of 0, all else equal: -1.05 points (95 % interval -1.69 to -0.41 over 2 "
            "seeds), better." in text
        )
        assert not any(line.startswith("Not shown") for line in text)

    def test_nothing_was_completed(self):
        assert self.said(trial("t", status=Status.STOPPED)) == [
            "No trial was trained to its end, so there is no answer yet."
        ]


class TestSeeds:
    def test_tables_say_how_many_and_how_far_apart(self):
        trials = [trial("a", error=4.0), trial("b", error=6.0, seed=1, role=Role.REPEAT), trial("c", 50, 9.0)]
        points = {point.trial_id: point for point in collect_points(study(*trials))}
        assert points["a"].spread == points["b"].spread == pytest.approx(2**0.5)
        assert format_point_error(points["a"]) == "5.00 % ± 1.41 (n = 2)"
        assert format_point_error(points["c"]) == "9.00 %"
        found = budget_table(answered(study(*trials)))
        assert dict(zip(found.columns, found.rows[0], strict=True))["standard_deviation"] == pytest.approx(2**0.5)
        assert plotted(study(*trials)).spreads == ((100.0, 5.0, pytest.approx(2**0.5)),)


def test_everything_at_once_is_typed_and_frozen(tmp_path):
    made = load_study(write_study(tmp_path, Plan(trials=60, epochs=4)))
    found = build_report(made, Path("points"))
    assert {p.trial_id for p in found.front} | {p.trial_id for p in found.references} == {
        r.trial_id for r in found.reproduce_commands
    }
    eligible = [p for p in found.points if p.eligible]
    kept = non_dominated([(float(p.params), p.error) for p in eligible])
    assert {p.trial_id for p in found.front} == {eligible[index].trial_id for index in kept}
    assert {f.kind for f in found.failures} == {"diverged", "out of memory", "failed", "infeasible"}
    assert found.effects
    assert found.heat_maps
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.front = ()
