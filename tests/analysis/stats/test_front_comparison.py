from __future__ import annotations

import csv

import pytest

from analysis.__main__ import main
from analysis.findings.study_comparison import compare_studies
from analysis.findings.study_diff import field_differences, trial_differences
from analysis.reporting.comparison_page import front_table
from analysis.stats.front_comparison import compare_fronts, parse_reference
from analysis.stats.hypervolume import ReferencePoint
from lowrank.errors import InputError
from sweeps.records.events import Role, Status
from tests.support.synthetic_data import study, trial
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

    def test_fronts_say_how_many_seeds_and_how_far_apart(self):
        repeated = [trial("a", error=4.0), trial("a1", error=6.0, seed=1, role=Role.REPEAT)]
        found = compare_fronts(
            [named("one", *repeated, data={"classes": 10}), named("two", trial("b"), data={"classes": 10})]
        )
        words = front_table(found).texts
        assert words[0][3] == "5.00 % ± 1.41 (n = 2)"
        assert words[1][3] == "5.00 %"

    def test_networks_of_other_sizes_need_a_reference(self):
        other = named("o", trial("b"), references={"separable": 500})
        with pytest.raises(InputError, match=r"one reference point; give one by --reference, of: 500,90; 1,000,90"):
            compare_fronts([named("m", trial("a")), other])
        assert (
            compare_fronts([named("m", trial("a")), other], reference=ReferencePoint(700, 50)).reference.params == 700
        )

    def test_other_data_are_not_compared(self):
        other = trial("b")
        other.specification["data"] = {"fingerprint": "beef"}
        said = compare_studies([named("m", trial("a")), named("o", other)]).sentences()
        assert said == [
            "The studies are on different data or splits: their errors cannot be compared, only their trials."
        ]

    @pytest.mark.parametrize("text", ["5", "0,5", "5,0", "5,101", "a,b"])
    def test_what_is_no_reference(self, text):
        with pytest.raises(InputError, match="--reference must be"):
            parse_reference(text)


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
