"""Texts that people write (questions, notes, names) come out of every command as they went in, and break nothing."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from analysis.__main__ import main
from analysis.model_export.model_card import model_card
from analysis.reporting.summary_table import print_summary
from analysis.stats.front import collect_points
from lowrank.io.image_preprocessing import ImagePreprocessing
from lowrank.io.model_file import ModelSpecification
from lowrank.layers import TensorTrain
from sweeps.records.events import Event
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE, REPORT_FOLDER
from tests.analysis.model_export.test_model_card import make_proof
from tests.support.journals import plain_events, write_plain
from tests.support.specifications import plain_specification
from tests.support.synthetic_data import study, trial
from tests.support.synthetic_study import Plan, write_study

TEXTS = {
    "a sum of money": "Is it worth $5 more, or $6?",
    "a formula": r"Is the rule $\frac12 n$ better, or $\nonsense{$?",
    "markup of a terminal": "[bold]Is it[/bold] [/] [link=x] \\[so?",
    "a table": "a | b \\| c",
    "HTML": "<script>alert('1')</script> & <b title=\"x\">",
    "Markdown": "# `code` *stars* [x](y) _z_",
    "a template": "{{ 7 * 7 }} {% raw %} {# x",
    "other scripts": "Größe 尺寸 حجم 🙂 \u202eabc",
    "two lines": "first\n## second",
}
pytestmark = pytest.mark.filterwarnings("ignore:Glyph .* missing from font")  # matplotlib's own font is of Europe
any_text = st.text(min_size=1, max_size=60) | st.sampled_from(list(TEXTS.values()))


def write_named(folder: Path, text: str) -> Path:
    """A study whose question, note, and the reason of whose failure are `text`."""
    write_study(folder, Plan(trials=8, epochs=2, closed=None))
    first, *others = plain_events(folder / JOURNAL_FILE)
    write_plain(folder / JOURNAL_FILE, [{**first, "question": text}, *others])
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.ANNOTATED, note=text, tags={})
    # Of as many epochs as all others, or the study is refused as mixed
    specification = plain_specification(
        method={"name": "cp"}, train={"epochs": 2, "weight_decay": 5e-4, "scaled_decay": True}
    )
    journal.append(Event.PROPOSED, trial="f" * 16, role="search", stratum="any size",
                   parameters={"method.name": text}, specification=specification,
                   counts={"params": 1000, "mult_adds": 2000}, proposal={})  # fmt: skip
    journal.append(Event.FINISHED, trial="f" * 16, status="failed", reason=text)
    journal.append(Event.CLOSED, reason="finished")
    journal.close()
    return folder


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_summary_shows_the_question_and_draws_its_front(text, tmp_path, capsys):
    folder = write_named(tmp_path / "a study [x] $1$ größe", text)
    assert main(["summary", str(folder)]) == 0
    assert re.sub(r"\s+", "", text) in re.sub(r"\s+", "", capsys.readouterr().out)
    assert (folder / "front.png").stat().st_size > 10_000
    rows = list(csv.DictReader(io.StringIO((folder / "summary.csv").read_text())))
    assert len(rows) > 3
    assert all(None not in row and None not in row.values() for row in rows)  # no text makes a column


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """A study with all of these texts at once."""
    return write_named(tmp_path_factory.mktemp("studies") / "all of [them] $1$", " ".join(TEXTS.values()))


def test_a_report_shows_every_text_and_runs_none(everything):
    assert main(["report", "--study", str(everything)]) == 0
    page = (everything / REPORT_FOLDER / "report.html").read_text()
    assert "<script>alert" not in page
    visible = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for text in TEXTS.values():
        assert re.sub(r"\s+", " ", text) in re.sub(r"\s+", " ", visible)


def test_a_comparison_shows_both_questions(everything, tmp_path):
    other = write_named(tmp_path / "other | $2$", TEXTS["a formula"])
    assert main(["compare", str(everything), str(other), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script>alert" not in page
    assert "other | $2$" in html.unescape(page)


@given(question=any_text, name=any_text, classes=st.lists(any_text, min_size=2, max_size=4), command=any_text)
@settings(max_examples=60, deadline=None)
def test_no_text_makes_a_line_of_a_model_card(question, name, classes, command):
    def card(question: str, name: str, classes: list[str], command: str) -> str:
        record = study(trial("abcd01", 100, 5.0), question=question, name=name, command=command)
        specification = ModelSpecification(
            network={"name": "resnet9"}, method=TensorTrain(dims=3, rank_scale=0.3), image_shape=(1, 8, 8), classes=10
        )
        images = ImagePreprocessing(mean=(0.1,), std=(0.2,), classes=tuple(classes), source=name)
        return model_card(record, collect_points(record)[0], specification, make_proof(), images)

    plain = card("q", "n", ["c"], "x")
    written = card(question, name, classes, command)
    assert len(written.splitlines()) == len(plain.splitlines())
    assert [line for line in written.splitlines() if line.startswith("#")] == [
        line for line in plain.splitlines() if line.startswith("#")
    ]
    assert "<script>" not in written


@given(question=any_text, reason=any_text)
@settings(max_examples=40, deadline=None)
def test_any_question_and_reason_can_be_printed(question, reason):
    record = study(trial("abcd01", 100, 5.0), trial("abcd02", 90, None, reason=reason), question=question)
    print_summary(record, collect_points(record), question)
