"""Parts of the report that only some studies have: starts from trained weights, and repeats."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.reporting.contents import build_report
from analysis.reporting.html_page import Page
from analysis.reporting.sections import describe_seeds, initial_section, repeat_section
from analysis.reporting.tables import budgets_table, layers_table
from analysis.stats.front import collect_points, study_strata
from sweeps.records.events import Role
from sweeps.records.model import StudyRecord
from tests.support.synthetic_data import study, trial

STRATA = [{"label": "small", "params": 100}, {"label": "large", "params": 500}]
TEACHER = {"name": "big", "weights": "f" * 16, "taps": ["stage1"], "sizes": [[4, 4]]}


def started(name: str, params: int, before: float, after: float, layers: tuple[dict, ...] = (), **fields):
    """A trial that began with trained weights."""
    record = trial(name, params, after, **fields)
    record.initial = {"val_error": before, "layers": list(layers)}
    return record


@pytest.fixture
def record() -> StudyRecord:
    layers = (
        {"name": "stage1.conv", "method": "cp", "ranks": [3, 4], "weight_error": 0.126, "output_error": 0.25},
        {"name": "classifier", "weight_error": 0.0, "output_error": 0.0},
    )
    return study(
        started("a", 90, 60.0, 8.0, layers, stratum="small"), started("b", 80, 50.0, 9.0, dims=3, stratum="small"),
        started("c", 400, 20.0, 4.0, stratum="large"), started("d", 300, 30.0, 5.0, method="tucker", stratum="large"),
        trial("e", 100, 1.0, stratum="small"), strata=STRATA, data={"val_images": 100},
    )  # fmt: skip


def page_of(record: StudyRecord, section, folder: Path) -> str:
    page = Page("made", folder, SimpleNamespace(submit=None))
    report = build_report(record, folder)
    section(page, record, report, folder)
    return page.html()


def test_each_method_and_budget_has_its_best_error_and_the_lowest_before_training(record):
    """What did not start from trained weights is no part of it, however good."""
    table = budgets_table(study_strata(record), collect_points(record))
    assert table.headings == ("method", "teacher", "small", "large")
    assert [row[2:] for row in table.texts] == [("8.00 % (50.0 %)", "4.00 % (20.0 %)"), ("", "5.00 % (30.0 %)")]
    assert [row[1] for row in table.texts] == ["alone", "alone"]
    assert [dict(zip(table.columns, row, strict=True))["trial_id"] for row in table.rows] == ["a", "c", "d"]


def test_layers_are_listed_for_all_and_shown_of_the_front(record):
    points = {point.trial_id: point for point in collect_points(record)}
    table = layers_table(record, [points["a"]])
    assert table.rows == (
        ("a", "stage1.conv", "cp", "3 x 4", 0.126, 0.25), ("a", "classifier", "dense", "", 0.0, 0.0),
    )  # fmt: skip
    assert [row[1:] for row in table.texts] == [
        ("stage1.conv", "CP", "3 x 4", "0.13", "0.25"), ("classifier", "dense", "", "0.00", "0.00"),
    ]  # fmt: skip
    assert layers_table(record, [points["c"]]).texts == ()


def test_the_page_shows_errors_before_training_only_where_there_are_some(record, tmp_path):
    text = page_of(record, initial_section, tmp_path)
    assert "Before any training" in text
    assert "8.00 % (50.0 %)" in text
    assert (tmp_path / "by_budget.csv").read_text().count("\n") == 4
    assert (tmp_path / "layers.csv").read_text().splitlines()[1] == "a,stage1.conv,cp,3 x 4,0.126,0.25"
    (tmp_path / "none").mkdir()
    assert "Before any training" not in page_of(study(trial("e", 100, 1.0)), initial_section, tmp_path / "none")
    assert not (tmp_path / "none" / "layers.csv").exists()


def test_repeats_are_means_with_gaps_to_the_reference_by_seed(tmp_path):
    seeds = [
        trial(f"a{seed}", 100, 5.0 + seed, seed=seed, role=Role.REPEAT if seed else Role.SEARCH) for seed in range(3)
    ]
    references = [
        trial(f"r{seed}", 1000, 7.0 + seed, method="separable", dims=None, seed=seed, role=Role.REFERENCE)
        for seed in range(3)
    ]
    text = page_of(study(*seeds, *references), repeat_section, tmp_path)
    assert "Means over seeds with two-sided 95 % t-intervals; gaps are paired by seed." in text
    rows = (tmp_path / "repeats.csv").read_text().splitlines()
    assert any("6.0" in row and "-2.0" in row for row in rows[1:])
    assert "Repeats" not in page_of(study(trial("e", 100, 1.0)), repeat_section, tmp_path)


@pytest.mark.parametrize(
    ("fewest", "most", "words"), [(1, 1, "of one seed each"), (3, 3, "means over 3 seeds"), (1, 3, "means over 1 to 3")]
)
def test_the_number_of_seeds_in_words(fewest, most, words):
    assert describe_seeds(fewest, most).startswith(words)
