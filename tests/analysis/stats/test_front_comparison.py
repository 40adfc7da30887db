from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.findings.study_comparison import compare_studies
from analysis.findings.study_diff import field_differences, trial_differences
from analysis.reporting.comparison_page import front_table, write_comparison
from analysis.stats.front_comparison import compare_fronts, parse_reference
from analysis.stats.hypervolume import ReferencePoint
from analysis.stats.inference.intervals import Z_95, newcombe_interval
from analysis.stats.inference.paired import tango_interval
from analysis.stats.study_bests import best_differences
from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from tests.support.specifications import change
from tests.support.synthetic_data import study, trial, trial_of_images
from tests.support.synthetic_study import Plan, write_study

HEADER = {"references": {"separable": 1000}, "data": {"classes": 10}}


def named(name, *trials, **header):
    for number, each in enumerate(trials):
        each.finished_at = float(number)
    return study(*trials, **{**HEADER, **header, "name": name})


class TestDifferences:
    def test_trials_that_differ_come_first(self):
        left = named("l", trial("same"), trial("moved", error=5.0), trial("ended"), trial("mine"))
        right = named("r", trial("same"), trial("moved", error=6.0), trial("ended", status=Status.DIVERGED))
        found = {each.trial_id: (each.kind, each.statuses) for each in trial_differences([left, right])}
        assert found == {
            "moved": ("differs", ("completed", "completed")), "ended": ("differs", ("completed", "diverged")),
            "mine": ("not in all", ("completed", "")), "same": ("same", ("completed", "completed")),
        }  # fmt: skip

    def test_a_mark_is_a_difference(self):
        right = trial("a")
        right.broken = "why"
        (only,) = trial_differences([named("l", trial("a")), named("r", right)])
        assert (only.kind, only.statuses) == ("differs", ("completed", "broken"))

    def test_settings(self):
        left = named("l", trial("a"), space={"train": {"epochs": 3}, "search": {"trials": 8}}, seed=1)
        right = named("r", trial("a"), space={"train": {"epochs": 5}, "search": {"trials": 8}}, seed=1)
        assert [(each.field, each.values) for each in field_differences([left, right])] == [
            ("space.train.epochs", (3, 5))
        ]


class TestCompare:
    def test_hypervolume_at_equal_cost(self):
        slow = named("slow", trial("a", 100, 10.0, epochs=4), trial("b", 10, 10.0, epochs=4))
        fast = named("fast", trial("c", 100, 20.0, epochs=2), trial("d", 100, 10.0, epochs=2))
        found = compare_fronts([slow, fast], "epochs")
        assert (found.equal_cost, found.reference) == (4, ReferencePoint(1000, 90.0))
        assert [growth.at(found.equal_cost) for growth in found.growths] == [pytest.approx(80.0), pytest.approx(80.0)]
        assert found.growths[0].at(8) == pytest.approx(160.0)
        assert [[point.trial_id for point in points] for points in found.fronts] == [["b"], ["d"]]

    @pytest.mark.parametrize(
        ("asked", "unit", "note"),
        [
            (None, "epochs", "Costs are epochs, because the machines differ (one cpu; two cuda 0.5 GPU)."),
            ("seconds", "seconds", "Seconds of unlike machines (one cpu; two cuda 0.5 GPU) are no equal cost."),
            ("epochs", "epochs", ""),
        ],
    )
    def test_seconds_of_unlike_machines_are_no_default(self, asked, unit, note):
        studies = [named("l", trial("a", epochs=2)), named("r", trial("b", epochs=2))]
        machines = ({"host": "one", "device": "cpu"}, {"host": "two", "device": "cuda", "gpus": 0.5})
        for one, machine in zip(studies, machines, strict=True):
            next(iter(one.trials.values())).attempts = [machine]
        compared = compare_fronts(studies, asked)
        assert (compared.unit, compared.cost_note) == (unit, note)

    def test_seconds_of_one_machine_are_the_default(self):
        studies = [named(name, trial(name, epochs=2)) for name in "lr"]
        for one in studies:
            next(iter(one.trials.values())).attempts = [{"host": "one", "device": "cpu"}]
        assert compare_fronts(studies).unit == "seconds"

    def test_a_study_without_a_finished_trial_is_called_empty_and_not_of_other_data(self):
        compared = compare_studies([named("l", trial("a")), named("r")])
        assert compared.fronts.same_data
        assert "There is nothing to compare: r completed no trial." in compared.sentences()

    def test_fronts_say_how_many_seeds_and_how_far_apart(self):
        repeated = [trial("a", error=4.0), trial("a1", error=6.0, seed=1, role=Role.REPEAT)]
        found = compare_fronts(
            [named("one", *repeated, data={"classes": 10}), named("two", trial("b"), data={"classes": 10})]
        )
        words = front_table(found).texts
        assert words[0][4] == "5.00 % ± 1.41 (n = 2)"
        assert words[1][4] == "5.00 %"

    def test_networks_of_other_sizes_need_a_reference(self):
        other = named("o", trial("b"), references={"separable": 500})
        with pytest.raises(InputError, match=r"one reference point; give one by --reference, of: 500,90; 1,000,90"):
            compare_fronts([named("m", trial("a")), other])
        assert (
            compare_fronts([named("m", trial("a")), other], reference=ReferencePoint(700, 50)).reference.params == 700
        )

    def test_other_data_are_not_compared(self):
        other = trial("b")
        other.specification = change(other.specification, data={"fingerprint": "beef"})
        said = compare_studies([named("m", trial("a")), named("o", other)]).sentences()
        assert said == [
            "The studies are on different data or splits: their errors cannot be compared, only their trials."
        ]

    @pytest.mark.parametrize("text", ["5", "0,5", "5,0", "5,101", "a,b"])
    def test_what_is_no_reference(self, text):
        with pytest.raises(InputError, match="--reference must be"):
            parse_reference(text)


class TestBests:
    """Of 100 images 40 and 30 are wrong: as two samples within noise, but on the same images clearly apart."""

    def test_the_best_are_compared_on_the_same_images_and_corrected_for_their_number(self):
        strata = [{"label": "s", "params": 100}, {"label": "l", "params": 200}]
        one = named("one", trial_of_images("a", range(40)), trial_of_images("b", range(20), params=200), strata=strata)
        two = named(
            "two", trial_of_images("c", range(30), seed=1), trial_of_images("d", range(19), params=200, seed=1),
            trial_of_images("e", range(50), seed=1, dims=3), strata=strata,
        )  # fmt: skip
        small, large = best_differences([one, two])
        assert (small.budget, small.gap.mean, small.n) == ("s", pytest.approx(-10), 1)
        assert (small.gap.low, small.gap.high) == pytest.approx(tango_interval(0, 10, 100, Z_95))
        assert small.selected.mean == pytest.approx(-10)  # which of the two is better is clear on any images
        assert small.p_value == pytest.approx(2 * small.selected.p_value)  # there are two comparisons
        assert (small.verdict, small.expected, small.base_expected) == ("better, of one seed", 40.0, 40.0)
        assert (large.budget, large.verdict) == ("l", "within noise")
        sentence = next(line for line in compare_studies([one, two]).sentences() if line.startswith("The best within"))
        assert "corrected for 2 comparisons: s: two -10.00 (" in sentence
        assert "Differences are on the same validation images" in sentence

    def test_without_a_choice_it_is_mcnemars_test(self):
        (row,) = best_differences([named(n, trial_of_images("a", range(c))) for n, c in (("one", 40), ("two", 30))])
        assert (row.selected, row.has_choice) == (None, False)
        assert row.p_value == pytest.approx(2 * 0.5**10)

    def test_the_study_that_tried_more_does_not_win_by_its_number(self):
        """Twenty equally good networks: their best is far below one other, corrected for the choice it is not."""
        random = np.random.default_rng(5)
        one = named("one", trial_of_images("a", np.flatnonzero(random.random(300) < 0.1), images=300))
        many = [np.flatnonzero(random.random(300) < 0.1) for _ in range(20)]
        two = named("two", *(trial_of_images(f"b{n}", w, images=300, dims=n) for n, w in enumerate(many)))
        comparison = compare_studies([one, two])
        (row,) = comparison.bests
        assert row.gap.mean < -3
        assert row.selected.mean > row.gap.mean + 1
        assert row.verdict == "within noise"
        assert comparison.choice == "Verdicts are corrected for the choice of the best in each study."
        assert "corrected for the choice" in " ".join(comparison.sentences())

    def test_old_studies_cannot_pay_for_the_choice_which_is_said(self):
        data = {"classes": 10, "val_images": 100}
        one = named("one", trial("a", error=40.0), data=data)
        two = named("two", trial("b", error=39.0), trial("c", error=30.0, dims=3), data=data)
        said = " ".join(compare_studies([one, two]).sentences())
        assert "No verdict is corrected for the choice of the best in each study" in said

    def test_old_studies_are_compared_as_two_samples_which_is_said(self):
        data = {"classes": 10, "val_images": 100}
        one, two = (named(n, trial(n, error=e), data=data) for n, e in (("one", 40.0), ("two", 30.0)))
        (row,) = best_differences([one, two])
        assert (row.budget, row.same_images, row.verdict) == ("any size", False, "within noise")
        assert (row.gap.low, row.gap.high) == pytest.approx(newcombe_interval(30, 40, 100))
        assert "not paired by image: the records do not say" in " ".join(compare_studies([one, two]).sentences())

    def test_a_study_without_the_number_of_images_has_no_interval(self):
        (row,) = best_differences([named("one", trial("a", error=4.0)), named("two", trial("b", error=3.0))])
        assert (row.gap.mean, row.gap.low, row.verdict) == (-1.0, None, "no interval")

    def test_over_several_seeds_of_old_studies_the_interval_is_over_seeds(self):
        one = named("one", *(trial(f"a{s}", error=5.0 + s, seed=s) for s in range(3)))
        two = named("two", *(trial(f"b{s}", error=4.0 + 1.5 * s, seed=s) for s in range(3)))
        (row,) = best_differences([one, two])
        expected = stats.ttest_rel([4.0, 5.5, 7.0], [5.0, 6.0, 7.0])
        assert row.p_value == pytest.approx(expected.pvalue)
        assert (row.gap.mean, row.gap.count, row.verdict) == (-0.5, 3, "within noise")


START = {"from": "dense.pt", "fingerprint": "f", "epochs": 20}


def test_the_front_says_the_epochs_in_all():
    started = trial("a", epochs=3)
    started.specification = change(started.specification, start=START)
    table = front_table(compare_fronts([named("m", started), named("o", trial("b"))]))
    assert [dict(zip(table.columns, row, strict=True))["total_epochs"] for row in table.rows] == [23, 1]
    assert [row[3] for row in table.texts] == ["3 (23 in all)", "1"]


@pytest.mark.parametrize(("epochs", "mark"), [(2, ""), (6, "Mixed: the trials differ in train.epochs (2; 6)")])
def test_every_table_of_unequal_studies_is_marked(tmp_path, epochs, mark):
    one, two = (named(name, trial(name, epochs=n)) for name, n in (("one", 2), ("two", epochs)))
    write_comparison(compare_studies([one, two], "epochs"), tmp_path)
    tables = sorted(tmp_path.glob("*.csv"))
    assert {path.stem for path in tables} >= {"bests", "fronts", "hypervolume", "trials"}
    for path in tables:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                assert row["mixed"].startswith(mark)
                assert bool(row["mixed"]) == bool(mark)


def test_the_command_writes_page_pictures_and_tables(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 1)):
        write_study(tmp_path / name, Plan(name=name, trials=16, epochs=4, seed=seed))
    assert main(["compare", "one", "two", "--studies", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "After the same cost" in said
    folder = tmp_path / "comparisons" / "one_two"
    assert {"comparison.html", "fronts.png", "hypervolume.png", "hypervolume.csv", "trials.csv", "fields.csv"} <= {
        path.name for path in folder.iterdir()
    }
    with (folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"same", "not in all"}


def test_two_folders_of_one_name_are_called_by_their_folders(tmp_path, capsys):
    for name in ("here", "there"):
        write_study(tmp_path / name, Plan(trials=4, epochs=2))
    folders = [str(tmp_path / name) for name in ("here", "there")]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    assert f"{folders[0]} " in capsys.readouterr().out
