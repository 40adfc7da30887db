"""The record of the original sweep that is kept in docs/results says what the page beside it says."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from analysis.stats.front import collect, front, references
from sweeps.records.events import Role, Status
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import JOURNAL_FILE

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
ROW = re.compile(r"^\| ([\d,]+) \| [^|]* \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
FINISHED = re.compile(
    r"^\| ([\d,]+) \| [^|]* \| ([\d.]+) after (\d+) \| ([\d.]+) \| (none so small|[\d.]+) \|$", re.MULTILINE
)


def kept(name: str, folder: Path) -> StudyRecord:
    (folder / JOURNAL_FILE).write_bytes(gzip.decompress((RESULTS / f"{name}.journal.jsonl.gz").read_bytes()))
    return load_study(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyRecord:
    return kept("tt_schedule", tmp_path_factory.mktemp("tts"))


@pytest.fixture(scope="module")
def page() -> str:
    return (RESULTS / "h200_tt_schedule_cifar10.md").read_text()


def test_the_front_is_that_of_the_page(study, page):
    points = collect(study)
    shown = sorted([*front(points), *references(points)], key=lambda point: point.params)
    found = [(f"{point.params:,}", f"{point.error:.2f}", f"{point.test_error:.2f}") for point in shown]
    assert found == ROW.findall(page)


def test_so_many_were_trained_and_stopped_as_it_says(study, page):
    searched = [trial for trial in study.trials.values() if trial.role is Role.SEARCH]
    ends = [trial.status for trial in searched]
    stopped = {n: sum(t.status is Status.STOPPED and t.last_epoch == n for t in searched) for n in (8, 24, 72)}
    assert sum(1 + len(trial.aliases) for trial in searched) == 129
    assert f"{ends.count(Status.COMPLETED)} of the {len(searched)} and the separable reference" in page
    assert f"stopped {stopped[8]} after 8 epochs, {stopped[24]} after 24 and {stopped[72]} after 72" in page
    assert sum(stopped.values()) == ends.count(Status.STOPPED)
    epochs = sum(len(trial.epochs) for trial in study.trials.values())
    assert f"In all {epochs:,} epochs" in page.replace("\n", " ")


def test_the_ten_that_were_trained_to_their_end_are_those_of_the_page(study, page, tmp_path):
    best = [(point.params, point.error) for point in front(collect(study))]
    found = []
    for trial in sorted(kept("tt_schedule_finish", tmp_path).trials.values(), key=lambda each: each.counts["params"]):
        old, params = study.trials[trial.trial_id], trial.counts["params"]
        as_small = min((error for size, error in best if size <= params), default=None)
        assert (old.status, trial.status, trial.last_epoch) == (Status.STOPPED, Status.COMPLETED, 128)
        ends = f"{trial.val_error:.2f}", "none so small" if as_small is None else f"{as_small:.2f}"
        found.append((f"{params:,}", f"{old.val_error:.2f}", str(old.last_epoch), *ends))
    assert found == FINISHED.findall(page)
    assert len(found) == 10
