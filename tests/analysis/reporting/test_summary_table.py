from __future__ import annotations

import csv
import dataclasses
import io
import itertools

import pytest
from rich.console import Console

from analysis.reporting.summary_table import (
    count_statuses,
    make_console,
    print_summary,
    summary_rows,
    write_summary_csv,
)
from analysis.stats.front import collect_points
from sweeps.records.events import Role, Status
from sweeps.records.load import load_study
from tests.support import synthetic_data
from tests.support.synthetic_study import Plan, write_study


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path, Plan(trials=24)))


class TestTable:
    def printed(self, study, width=100):
        stream = io.StringIO()
        print_summary(study, collect_points(study), "the answer", Console(file=stream, width=width, highlight=False))
        return stream.getvalue()

    def test_one_line_a_trial_within_100_columns(self, study):
        lines = self.printed(study).splitlines()
        assert max(map(len, lines)) <= 100
        body = lines[next(i for i, line in enumerate(lines) if "───" in line) + 1 :]
        body = list(itertools.takewhile(str.strip, body))
        assert len(body) == len(collect_points(study))
        assert not any("…" in line for line in body)  # nothing is cut off
        assert [line.startswith(" *") or line.startswith("*") for line in body] == [
            row.on_front for row in summary_rows(collect_points(study))
        ]

    def test_a_setting_of_several_seeds_has_mean_deviation_and_number(self):
        seeds = [
            synthetic_data.trial("a", error=4.0),
            synthetic_data.trial("b", error=6.0, seed=1, role=Role.REPEAT),
            synthetic_data.trial("c", 50, 9.0),
        ]
        lines = self.printed(synthetic_data.study(*seeds)).splitlines()
        (mean,) = [line for line in lines if "5.00±1.41 (2)" in line]
        assert mean.startswith("*")
        assert max(map(len, lines)) <= 100

    def test_balanced_errors_have_a_column_where_one_differs_by_half_a_point(self, tmp_path):
        study = load_study(write_study(tmp_path, Plan(trials=16)))
        measured = [trial for trial in study.trials.values() if trial.val_error is not None]
        for trial in measured:
            trial.counts = {name: 100_000 * count for name, count in trial.counts.items()}
            trial.test_error = 12.34
            trial.epochs[trial.last_epoch]["val_balanced_error"] = trial.val_error + 0.4
        assert "bal %" not in self.printed(study)
        measured[0].epochs[measured[0].last_epoch]["val_balanced_error"] = 43.21
        lines = self.printed(study).splitlines()
        assert max(map(len, lines)) <= 100
        (heading,) = [line for line in lines if "val %" in line]
        assert heading.index("bal %") > heading.index("val %")
        assert sum("43.21" in line for line in lines) == 1
        assert not any("…" in line for line in lines)
        assert "  bal %: the mean over classes of the validation error on their images" in lines

    def test_the_balanced_error_of_several_seeds_is_in_the_row_of_the_first(self):
        seeds = [
            synthetic_data.trial("a", error=4.0),
            synthetic_data.trial("b", error=6.0, seed=1, role=Role.REPEAT),
        ]
        for trial, balanced in zip(seeds, (8.0, 9.0), strict=True):
            trial.epochs[trial.last_epoch]["val_balanced_error"] = balanced
        (row,) = [line for line in self.printed(synthetic_data.study(*seeds)).splitlines() if "8.50" in line]
        assert "5.00±1.41 (2)" in row

    def test_test_errors_and_large_networks_fit_into_100_columns(self, tmp_path):
        study = load_study(write_study(tmp_path, Plan(trials=16)))
        for trial in study.trials.values():
            trial.test_error = 12.34
            trial.counts = {name: 1000 * count for name, count in trial.counts.items()}
        assert "…" not in self.printed(study)
        assert "test %" in self.printed(study)

    def test_shares_are_of_the_network_that_the_budget_is_relative_to(self, study):
        assert "% sep: share of the separable network's" in self.printed(study)
        header = study.header.model_copy(update={"space": {"budget": {"relative_to": "dense"}}})
        text = self.printed(dataclasses.replace(study, header=header))
        assert "% dense: share of the dense network's" in text
        assert "% sep" not in text

    def test_a_mark_tells_trials_with_a_teacher_from_those_without(self):
        trials = [
            synthetic_data.trial("a", error=4.0),
            synthetic_data.trial("b", 200, 5.0),
            synthetic_data.trial("c", 300, 6.0, role=Role.REFERENCE),
        ]
        study = synthetic_data.study(*trials)
        for taught, marked in (("", ""), ("b", "b"), ("ab", "")):
            points = [
                dataclasses.replace(point, teacher="itself" if point.trial_id in taught else "")
                for point in collect_points(study)
            ]
            stream = io.StringIO()
            print_summary(study, points, "the answer", Console(file=stream, width=100, highlight=False))
            text = stream.getvalue()
            rows = [line for line in text.splitlines() if "CP t" in line]
            assert len(rows) == len(marked)
            assert all(" 200 " in row for row in rows)  # the parameters of trial b
            assert ("  t: trained with a teacher" in text.splitlines()) == bool(marked)

    def test_every_status_is_counted_with_its_reasons(self, study):
        text = self.printed(study)
        total = sum(count.count for count in count_statuses(study))
        assert total == len(study.trials)
        assert "1 out of memory: CUDA out of memory (1)" in text
        assert "2 infeasible: bottleneck of rank 0: needs at least 72,130 parameters (2)" in text
        assert count_statuses(study)[0].status is Status.COMPLETED

    def test_less_common_reasons_are_counted_together(self, study):
        failed = list(study.trials.values())[:5]
        for number, trial in enumerate(failed):
            trial.status, trial.reason = Status.FAILED, f"reason {number}"
        count = next(count for count in count_statuses(study) if count.status is Status.FAILED)
        assert count.text().endswith(f"others ({count.count - 3})")

    def test_early_stops_are_counted_without_their_reasons(self, study):
        count = next(count for count in count_statuses(study) if count.status is Status.STOPPED)
        assert count.text() == f"{count.count} stopped early"

    def test_piped_output_has_no_colours_and_100_columns(self, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        console = make_console(io.StringIO())
        assert console.width == 100
        assert console.color_system is None

    def test_the_csv_has_full_numbers(self, study, tmp_path):
        write_summary_csv(collect_points(study), tmp_path / "summary.csv")
        with (tmp_path / "summary.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(collect_points(study))
        for line, row in zip(lines, summary_rows(collect_points(study)), strict=True):
            assert line["trial_id"] == row.point.trial_id
            assert int(line["params"]) == row.point.params
            assert float(line["val_error"]) == row.point.val_error
            assert line["on_front"] == str(row.on_front)


def test_infeasible_trials_are_one_line_for_each_method():
    trials = [
        synthetic_data.trial(
            f"{method}{limit}", status=Status.INFEASIBLE, reason=f"{method}: over the budget of {limit}",
            method__name=method, budget__params=limit,
        )
        for method in ("cp", "shuffle") for limit in (0.4, 0.8, 0.2)
    ]  # fmt: skip
    (count,) = count_statuses(synthetic_data.study(*trials))
    assert count.text().splitlines() == [
        "6 infeasible, at the largest budget that each method cannot meet:", "  cp: over the budget of 0.8 (3)",
        "  shuffle: over the budget of 0.8 (3)",
    ]  # fmt: skip
