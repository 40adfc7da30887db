from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from analysis.findings.answer import answers
from analysis.findings.cost import study_cost
from analysis.findings.curves import MAX_CURVES, _evenly_spaced, learning_curves
from analysis.findings.failures import BROKEN, group_failures, list_failures
from analysis.findings.heatmap import BINS, heat_maps
from analysis.findings.provenance import TrackingLink, study_provenance, tracking_link
from analysis.findings.published_results import (
    PUBLISHED_RESULTS,
    EvaluationSetting,
    evaluation_setting,
    matching_results,
)
from analysis.findings.reproduce import reproduce_command
from analysis.findings.test_errors import measured_test_errors, series_of_test_errors
from analysis.reporting.contents import build_report, summarise
from analysis.reporting.front_data import front_plot
from analysis.reporting.tables import budget_table, equal_size_table, format_point_error, table_of_test_errors
from analysis.stats.front import collect_points, pareto_front, study_strata
from analysis.stats.importance import MIN_TRIALS, field_importances, searched_settings
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


class TestHeat:
    def grid(self):
        cells = [(2, 0.1, 9.0), (2, 0.2, 7.0), (3, 0.1, 5.0)]
        trials = [
            trial(f"{dims}{scale}", error=error, method="tucker", dims=dims, scale=scale)
            for dims, scale, error in cells
        ]
        trials[0].aliases = [{"method.dims": 4, "method.rank_scale": 0.2}]
        stopped = trial("x", error=50.0, method="tucker", dims=3, scale=0.2, status=Status.STOPPED)
        return study(*trials, stopped)

    def test_given_scales(self):
        (heat,) = heat_maps(self.grid())
        assert (heat.method, heat.columns_are) == ("Tucker", "rank scale")
        assert (heat.rows, heat.columns) == ((2, 3, 4), ("0.1", "0.2"))
        errors = [[cell and (cell.error, cell.completed, cell.stopped) for cell in row] for row in heat.cells]
        assert errors == [[(9.0, 1, 0), (7.0, 1, 0)], [(5.0, 1, 0), (None, 0, 1)], [None, (9.0, 1, 0)]]

    def test_solved_scales_in_bins_and_by_budget(self):
        trials = [
            trial(f"t{n}", error=5.0 + n, dims=2 + n % 2, scale=0.01 * 1.3**n, stratum=f"params <= {n // 6}",
                  budget__params=n // 6)
            for n in range(12)
        ]  # fmt: skip
        labels = [{"label": f"params <= {n}", "params": n} for n in (0, 1)]
        binned, by_budget = heat_maps(study(*trials, strata=labels))
        assert (binned.columns_are, len(binned.columns)) == ("rank scale (bins)", BINS)
        assert sum(cell.completed for row in binned.cells for cell in row if cell) == 12
        assert (by_budget.columns, by_budget.columns_are) == (("≤ 0", "≤ 1"), "budget")
        assert [[cell.error for cell in row] for row in by_budget.cells] == [[5.0, 11.0], [6.0, 12.0]]

    def test_a_setting_of_several_seeds_counts_by_its_mean(self):
        shape = {"method": "tucker", "scale": 0.1}
        trials = [
            trial("lucky", error=1.0, dims=2, **shape),
            trial("not", error=9.0, dims=2, seed=1, role=Role.REPEAT, **shape),
            trial("steady", error=4.0, dims=3, **shape),
        ]  # fmt: skip
        (heat,) = heat_maps(study(*trials))
        assert [[(c.error, c.seeds, c.completed) for c in row] for row in heat.cells] == [[(5.0, 2, 1)], [(4.0, 1, 1)]]
        assert heat.seeds == (1, 2)

    def test_methods_without_dimensions_have_none(self):
        assert heat_maps(study(trial("a", dims=None), trial("b", dims=None))) == []

    def test_where_many_were_stopped_a_further_map_holds_all_at_the_last_epoch_that_they_share(self):
        stopped = [
            trial(f"s{dims}", error=30.0 + dims, method="tucker", dims=dims, scale=0.1, status=Status.STOPPED, epochs=2)
            for dims in (2, 3)
        ]
        whole = trial("w", error=9.0, method="tucker", dims=4, scale=0.1, epochs=5)
        whole.epochs[2] = {"val_error": 28.0}
        diverged = trial("d", error=90.0, method="tucker", dims=5, scale=0.1, status=Status.DIVERGED, epochs=1)
        end, early = heat_maps(study(*stopped, whole, diverged))
        assert (end.epoch, early.epoch) == (None, 2)
        assert [[cell and cell.error for cell in row] for row in end.cells] == [[None], [None], [9.0], [None]]
        assert [[cell and cell.error for cell in row] for row in early.cells] == [[32.0], [33.0], [28.0], [None]]
        many = [trial(f"m{dims}", error=8.0, method="tucker", dims=dims, scale=0.2, epochs=5) for dims in range(2, 9)]
        assert [heat.epoch for heat in heat_maps(study(*stopped, *many))] == [None]


class TestCurves:
    def test_the_front_and_the_references(self):
        made = study(
            trial("a", 10, 5.0, epochs=3), trial("b", 20, 6.0, epochs=3),
            trial("r", 50, 4.0, epochs=3, method="dense", dims=None, role=Role.REFERENCE),
        )  # fmt: skip
        found = learning_curves(made, collect_points(made))
        assert [(c.trial_id, c.reference, c.label) for c in found] == [
            ("a", False, "CP, 2 dims, 10"), ("r", True, "dense"),
        ]  # fmt: skip
        assert found[0].points == ((1, 5.0), (2, 5.0), (3, 5.0))

    def test_a_long_front_keeps_its_ends(self):
        points = pareto_front(collect_points(study(*(trial(f"t{n}", 10 + n, 50.0 - n) for n in range(20)))))
        chosen = _evenly_spaced(points, MAX_CURVES)
        assert len(chosen) == MAX_CURVES
        assert (chosen[0], chosen[-1]) == (points[0], points[-1])


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


class TestCost:
    def test_hours_starts_and_speed(self):
        done = trial("a", epochs=3, seconds=4.0)
        for metrics in done.epochs.values():
            metrics["images_per_second"] = 50.0
        done.attempts = [{"device": "cuda", "start_seconds": 2.0}, {"device": "cuda", "start_seconds": 1.0}]
        done.proposed_at, done.finished_at = 100.0, 130.0
        failed = trial("b", error=None, status=Status.FAILED)
        failed.attempts = [{"device": "cuda", "start_seconds": 5.0}]
        made = study(done, failed, data={"train_images": 100}, space={"resources": {"gpus_per_trial": 0.25}})
        cost = study_cost(made)
        assert [(o.status, o.trials, o.epochs, o.seconds) for o in cost.outcomes] == [
            (Status.COMPLETED, 1, 3, 12.0), (Status.FAILED, 1, 0, 0.0),
        ]  # fmt: skip
        assert (cost.train_seconds, cost.start_seconds, cost.attempts, cost.again) == (12.0, 8.0, 3, 1)
        assert cost.gpu_hours == pytest.approx(0.25 * 20 / 3600)
        assert cost.start_share == pytest.approx(0.4)
        assert (cost.wall_seconds, cost.images_per_second, cost.throughput) == (30.0, 50.0, 10.0)

    def test_without_a_card_and_without_a_record(self):
        on_cpu = trial("a")
        on_cpu.attempts = [{"device": "cpu"}]
        assert study_cost(study(on_cpu)).gpu_hours == 0
        unknown = study_cost(study(trial("a")))
        assert (unknown.gpu_hours, unknown.wall_seconds, unknown.images_per_second) == (None, None, None)


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


class TestTested:
    def test_only_where_data_and_split_are_the_same(self):
        wide = {"network": {"name": "wrn_28_10"}}
        data = {"name": "cifar10", "train_images": 40_000, "test_images": 10_000}
        points, note = matching_results(evaluation_setting(study(**wide, data=data)))
        assert points == []
        assert "20 printed test errors of wrn_28_10 on cifar10 are not drawn: they are of networks trained on" in note
        assert "50,000 images and tested on 10,000, these were trained on 40,000 and tested on 10,000." in note
        own = evaluation_setting(study(**wide, data={**data, "train_images": 50_000}))
        assert matching_results(own) == (list(PUBLISHED_RESULTS), "")

    def test_of_another_network_nothing_is_said(self):
        own = EvaluationSetting(network="resnet9", data="digits", train_images=1, test_images=1)
        assert matching_results(own) == ([], "")

    def test_means_over_seeds_and_printed_ones_are_hollow(self):
        first, second, base = (
            trial("a", error=4.0, method="tucker"),
            trial("a1", error=6.0, method="tucker", seed=1, role=Role.REPEAT),
            trial("s", SEPARABLE, 3.0, method="separable", dims=None, role=Role.REFERENCE),
        )
        for each, error in ((first, 5.0), (second, 7.0), (base, 2.0)):
            each.test_error = error
        points = collect_points(study(first, second, base, trial("never", 50, 1.0)))
        found = measured_test_errors(points)
        assert [(each.point.trial_id, each.error, each.seeds) for each in found] == [("a", 6.0, 2), ("s", 2.0, 1)]
        series = series_of_test_errors(points, found, PUBLISHED_RESULTS[:1] + PUBLISHED_RESULTS[-1:])
        assert [(each.label, each.printed, len(each.points)) for each in series] == [
            ("Tucker", False, 1), ("separable", False, 1), ("ACDC, printed", True, 1),
            ("tensor train, printed", True, 1),
        ]  # fmt: skip
        table = table_of_test_errors(found, PUBLISHED_RESULTS[:1])
        assert [row[-1] for row in table.rows] == ["measured", "measured", "printed"]
        assert table.texts[0][2:4] == ("6.00 % ± 1.41 (n = 2)", "5.00 %")


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


class TestAbout:
    def test_everything_that_is_on_record(self):
        trials = [trial("a"), trial("b", seed=1)]
        for number, each in enumerate(trials):
            each.attempts = [{"host": "one", "device": "cpu"}, {"host": ("one", "two")[number], "device": "cuda"}]
            each.proposed_at, each.finished_at = 1_790_000_000.0 + number, 1_790_000_600.0 + number
        made = study(
            *trials, command="python sweeps/run.py --space x", commit="c0ffee", versions={"torch": "2.13"},
            network={"name": "resnet9", "width": 0.25}, hardware={"cpus": 4, "gpus": ["H200", "H200"]},
            data={"name": "digits", "fingerprint": "f00d", "train_images": 1077, "val_images": 360, "classes": 10},
        )  # fmt: skip
        made.notes, made.tags = ["first"], {"team": "vision"}
        assert dict(study_provenance(made).facts) == {
            "command": "python sweeps/run.py --space x", "network": "resnet9 of width 0.25",
            "data": "digits, fingerprint f00d", "images": "1,077 training, 360 validation, 10 classes",
            "hosts": "one (1 trial), two (1 trial)",
            "devices": "cuda (2 trials); the driver's machine: 4 CPUs, 2 x H200", "seeds": "0, 1 (n = 2)",
            "dates": "2026-09-21 14:13 to 14:23 UTC", "versions": "torch 2.13", "code": "c0ffee", "notes": "first",
            "tags": "team=vision",
        }  # fmt: skip
        assert study_provenance(study()).facts == ()

    def test_where_mlflow_has_it(self, tmp_path):
        server = "http://user:secret@host:5000"
        assert tracking_link(study(), tmp_path, None) is None
        words = f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
        (tmp_path / "mlflow.db").touch()
        assert tracking_link(study(), tmp_path, None) == TrackingLink(link="", words=words)
        found = tracking_link(study(), tmp_path, server)
        shown = "http://user:***@host:5000"
        assert found == TrackingLink(link=shown, words=f"experiment made at {shown}")
        noted = {"uri": "http://host:5000", "experiment": "3", "parent": "beef"}
        (tmp_path / "tracking.json").write_text(json.dumps(noted))
        assert tracking_link(study(), tmp_path, None).link == "http://host:5000/#/experiments/3/runs/beef"

    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?user=u&password=***"),
            ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        ],
    )
    def test_the_page_shows_no_password(self, uri, shown, tmp_path):
        assert tracking_link(study(), tmp_path, uri).words == f"mlflow ui --backend-store-uri {shown}"

    def test_a_database_in_a_folder_with_an_at_sign_is_named_in_full(self, tmp_path):
        (tmp_path / "a@b").mkdir()
        uri = f"sqlite:///{tmp_path}/a@b/mlflow.db"
        (tmp_path / "a@b" / "mlflow.db").touch()
        assert tracking_link(study(), tmp_path, uri).words == f"mlflow ui --backend-store-uri {uri}"


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
