"""`python -m analysis log`: an entry for each run, in chapters; what people type into the file is never overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.reporting import render_png
from analysis.research_log import collect, document
from analysis.research_log.other_entries import COMPRESS_FILE, CURVE_FILE, TEACHER_FILE
from analysis.research_log.study_entries import _front_table
from analysis.stats import collect_points, pareto_front
from sweeps.records import JOURNAL_FILE, Event, Journal, NoteKind, append_note, load_study
from tests.support.synthetic_data import study, trial
from tests.support.synthetic_study import Plan, write_study

NASTY = "# no *heading* <script>alert(1)</script> | a | b | `x`\n<!-- your text: head -->\n- [ ] no box"
MINE = "My **own** words.\n\nTakeaway: 3 dims suffice\n- [ ] more <i>seeds</i>\n```\nno end\n"


@pytest.fixture
def studies(tmp_path, monkeypatch) -> Path:
    """Two studies of a group, one of them interrupted and resumed, and a later one of no group."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(document, "render_png", lambda job, path: path.write_bytes(b"takes long to draw"))
    for number, name in enumerate(("first", "second", "third")):
        write_study(tmp_path / "studies" / name, Plan(name=name, trials=8, epochs=3, seed=number, closed="interrupted"))
    more("first", (Event.ANNOTATED, {"note": NASTY, "tags": {"group": "initial runs"}}))
    more("second", (Event.ANNOTATED, {"note": "", "tags": {"group": "initial runs"}}))
    header = {
        key: value
        for key, value in load_study(Path("studies/first")).header.to_json().items()
        if key not in ("event", "time")
    }
    more("first", (Event.STUDY, {**header, "commit": "later"}), (Event.CLOSED, {"reason": "finished"}))
    return tmp_path


def more(name: str, *events: tuple[Event, dict]) -> None:
    journal = Journal(Path("studies", name, JOURNAL_FILE))
    for event, fields in events:
        journal.append(event, **fields)
    journal.close()


def log(*words: str) -> str:
    assert main(["log", *words]) == 0
    return Path("LOG.md").read_text()


def headings(text: str) -> list[str]:
    return re.findall(r"^#{1,3} .*", text, re.MULTILINE)


def typed(text: str, key: str, mine: str) -> str:
    begin = f"<!-- your text: {key} -->\n"
    assert f"{begin}\n" in text
    return text.replace(f"{begin}\n", f"{begin}{mine}")


def keys(text: str) -> list[str]:
    return re.findall(r"^<!-- your text: (\S+) -->$", text, re.MULTILINE)


def test_the_test_error_of_a_setting_is_the_mean_over_its_seeds_as_the_validation_error_is() -> None:
    trials = [trial(name, 100, 4.0 + seed, seed=seed) for seed, name in enumerate("abc")]
    trials[0].test_error, trials[1].test_error = 6.0, 9.0
    points = collect_points(study(*trials))
    (table,) = _front_table(pareto_front(points), points)
    assert table.rows[0][-3:] == ("5.00 %", "7.50 % (2 of 3 seeds)", "3")
    trials[2].test_error = 9.0
    points = collect_points(study(*trials))
    (table,) = _front_table(pareto_front(points), points)
    assert table.rows[0][-3:] == ("5.00 %", "8.00 %", "3")


def test_every_run_has_an_entry_in_its_chapter_in_order_of_time(studies):
    text = log()
    entries = [heading.split(" ", 3)[3] for heading in headings(text) if heading.startswith("### ")]
    assert entries == ["first, run 1", "second", "first, run 2", "third"]
    chapters = [heading for heading in headings(text) if heading.startswith("## ")]
    assert chapters == ["## All entries", "## Group: initial runs", "## Runs of no group"]
    for name in re.findall(r"\]\(LOG_pictures/(\S+)\)", text):
        assert Path("LOG_pictures", name).is_file()
    assert len(list(Path("LOG_pictures").iterdir())) == 8
    page = Path("LOG.html").read_text()
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    assert "interrupted" in text
    assert "| commit | 0123456789abcdef | later |" in text


def test_a_second_call_leaves_the_text_of_people_untouched(studies, capsys):
    text = log()
    own, head = keys(text)[1], "Read this first.\n"
    Path("LOG.md").write_text(typed(typed(text, own, MINE), "head", head))
    more("second", (Event.ANNOTATED, {"note": "news", "tags": {}}))
    again = log()
    assert f"<!-- your text: {own} -->\n{MINE}<!-- end of your text: {own} -->\n```\n" in again
    assert f"<!-- your text: head -->\n{head}<!-- end" in again
    assert "news" in again
    assert log() == again
    assert "2 texts of yours kept" in capsys.readouterr().out
    assert "- 3 dims suffice ([" in again
    assert "- [ ] more \\<i>seeds\\</i> ([" in again
    page = Path("LOG.html").read_text()
    assert "<strong>own</strong>" in page
    assert "<i>" not in page


def test_text_of_an_entry_that_is_left_out_is_kept_and_comes_back(studies):
    text = log()
    own = keys(text)[1]
    Path("LOG.md").write_text(typed(text, own, MINE))
    Path("LOG_pictures", "study-plan.png").write_bytes(b"of a person")
    shorter = log("third")
    assert "## Text of entries that are not shown" in shorter
    assert MINE in shorter
    assert len(list(Path("LOG_pictures").glob("study-third-*"))) == 2
    assert len(list(Path("LOG_pictures").iterdir())) == 3, "a picture of a person stays"
    whole = log()
    assert "## Text of entries that are not shown" not in whole
    assert f"<!-- your text: {own} -->\n{MINE}" in whole


def test_text_outside_the_markers_is_saved_beside_the_log(studies, capsys):
    text = log()
    Path("LOG.md").write_text(text.replace("## All entries", "My note in the wrong place.\n\n## All entries"))
    assert "wrong place" not in log()
    assert "wrong place" in Path("LOG-changed-by-hand.md").read_text()
    assert (
        "LOG.md had been changed outside the markers; the old file is LOG-changed-by-hand.md" in capsys.readouterr().out
    )


def test_a_damaged_marker_stops_the_command_before_anything_is_written(studies, capsys):
    text = log().replace("<!-- end of your text: head -->\n", "")
    Path("LOG.md").write_text(text)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert main(["log"]) == 2
    assert "has no partner" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    assert Path("LOG.md").read_text() == text


def test_no_note_breaks_the_file_or_the_page(studies):
    more("second", (Event.EXCLUDED, {"trial": best("second"), "broken": NASTY}))
    text = log()
    assert keys(text).count("head") == 1
    page = Path("LOG.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3  # the note, the mark and the reason
    assert "marked as broken" in text
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        rows = [row.count("<t") for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        assert len(set(rows)) == 1


def best(name: str) -> str:
    return next(t.trial_id for t in load_study(Path("studies", name)).trials.values() if t.role == "search")


def test_takeaways_and_open_to_dos_stand_at_the_head(studies):
    append_note(Path("studies/third"), NoteKind.TAKEAWAY, "rates above 1 diverge")
    closed = append_note(Path("studies/third"), NoteKind.TODO, "nothing any more")
    still = append_note(Path("studies/third"), NoteKind.TODO, "more seeds", "abcd")
    append_note(Path("studies/third"), NoteKind.DONE, closed.note_id)
    head = log().partition("## All entries")[0]
    assert "- rates above 1 diverge ([" in head
    assert "- [ ] trial abcd: more seeds ([" in head
    assert f"python -m analysis note studies/third --done {still.note_id}" in head
    assert "nothing any more" not in head


def test_what_was_typed_in_mlflow_comes_with_the_last_run(studies, monkeypatch, capsys):
    Path("studies/first/mlflow.db").write_bytes(b"no database")
    assert "typed there" not in log()
    assert "studies/first: what was typed in MLflow is left out: the MLflow store" in capsys.readouterr().err
    trial = best("first")
    monkeypatch.setattr(collect, "load_typed_notes", lambda uri, study, key: {"": "typed there", trial: "of a trial"})
    first, last = log().split("### ")[1:4:2]
    assert "typed there" not in first
    assert "- *MLflow*: typed there" in last
    assert f"- *MLflow, trial {trial}*: of a trial" in last


def test_pictures_are_drawn_again_only_where_they_change(studies, monkeypatch):
    monkeypatch.setattr(document, "render_png", render_png)
    log("third", "second")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("LOG_pictures").iterdir())
    before = {path.name: path.stat().st_mtime_ns for path in Path("LOG_pictures").iterdir()}
    more("third", (Event.EXCLUDED, {"trial": front_trial("third"), "broken": "x"}))
    log("third", "second")
    after = {path.name: path.stat().st_mtime_ns for path in Path("LOG_pictures").iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed
    assert all("third" in name for name in changed)


def front_trial(name: str) -> str:
    from analysis.stats import collect_points, pareto_front

    return pareto_front(collect_points(load_study(Path("studies", name))))[-1].trial_id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "LOG.txt"], "--out must be a Markdown file such as LOG.md, but got LOG.txt"),
        (["--out", "nowhere/LOG.md"], "--out must be a file in a folder that exists, but got nowhere/LOG.md"),
        (["--since", "yesterday"], "--since must be a day such as 2026-11-29, but got 'yesterday'"),
        (["fourth"], "unknown study 'fourth'; choose from: first, second, third"),
    ],
)
def test_a_mistake_is_one_line(studies, words, message, capsys):
    assert main(["log", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("LOG.md").exists()


def test_a_day_cuts_off_what_began_before(studies):
    assert [h for h in headings(log("--since", "2100-01-01")) if h.startswith("### ")] == []
    assert len([h for h in headings(log("--since", "2001-01-01")) if h.startswith("### ")]) == 4


def test_teachers_have_entries(studies):
    teacher = Path("teachers/big")
    teacher.mkdir(parents=True)
    record = {
        "version": 1, "name": "big", "network": {"name": "resnet9", "width": 0.5}, "method": {"name": "dense"},
        "params": 1000, "image_shape": [1, 8, 8], "classes": 10, "data": {"name": "digits", "fingerprint": "f00d"},
        "train": {"epochs": 2}, "views": {}, "seed": 3, "specification_id": "0" * 12, "val_error": 5.0,
        "val_loss": 0.2, "test_error": 6.0, "sha256": "00", "seconds": 90.0,
        "registered_at": "2026-01-01T00:00:00+00:00",
        "command": "python sweeps/teacher.py --name big", "commit": "c0ffee", "versions": {"torch": "2.13"},
        "hardware": {"host": "vm", "cpus": 2, "gpus": []},
    }  # fmt: skip
    (teacher / TEACHER_FILE).write_text(json.dumps(record))
    (teacher / CURVE_FILE).write_text(json.dumps([{"val_error": 20.0}, {"val_error": 5.0}]))
    text = log()
    assert "### 2025-12-31 23:58 teacher big" in text
    assert "| network | resnet9 of width 0.5, 1,000 parameters |" in text
    assert "5.00 % validation error, 6.00 % test error" in text
    assert "    python sweeps/teacher.py --name big" in text
    assert len(list(Path("LOG_pictures").glob("teacher-big-*-curves.png"))) == 1
    (teacher / CURVE_FILE).write_text("no JSON")
    assert main(["log", "teachers/big"]) == 2


@pytest.mark.parametrize(
    ("finetuned", "after"), [((None, None), "62.0 %"), ((6.5, 9.25), "6.50 %")], ids=["as it is", "fine-tuned"]
)
def test_compressed_networks_have_entries_with_a_row_for_each_budget(studies, finetuned, after):
    folder = Path("half")
    folder.mkdir(parents=True)
    networks = [
        {"folder": name, "params": params, "dense_params": 1000, "mult_adds": 10 * params, "dense_mult_adds": 40000,
         "method": "tucker2", "error_before": 2.0, "error_after": error, "error_finetuned": trained}
        for name, params, error, trained in zip(("a", ""), (500, 250), (62.0, 80.0), finetuned, strict=True)
    ]  # fmt: skip
    record = {
        "began": 1_780_000_000.0, "ended": 1_780_000_090.0, "networks": networks, "finetune": 2 if finetuned[0] else 0,
        "failed": ["a/merged.onnx: not written: no operator"], "network": {"name": "resnet9", "width": 0.5},
        "weights": "dense.pt", "data": {"name": "digits", "fingerprint": "f00d"}, "images": 360, "report_on": "test",
        "machine": "a CPU", "device": "cpu", "seed": 3, "commit": "c0ffee", "command": "python -m lowrank.compress",
    }  # fmt: skip
    (folder / COMPRESS_FILE).write_text(json.dumps(record))
    text = log()
    assert re.search(r"^### 2026-05-28 \d\d:26 compressed network half$", text, re.MULTILINE)
    assert f"500 of 1,000 parameters, error 2.00 % before and {after} after" in text
    rows = [line for line in text.splitlines() if "tucker2" in line]
    assert [re.findall(r"[\d.]+%", row) for row in rows] == [["50.0%", "12.5%"], ["25.0%", "6.2%"]]
    assert ("9.25 %" in rows[1]) == bool(finetuned[1])
    assert "resnet9 of width 0.5, 1,000 parameters, weights dense.pt" in text
    assert "a/merged.onnx: not written: no operator" in text
    assert "    python -m lowrank.compress" in text
    del record["machine"]
    (folder / COMPRESS_FILE).write_text(json.dumps(record))
    assert main(["log", "half"]) == 2


def test_the_names_of_the_records_of_teachers_and_compressed_networks_are_those_of_their_writers():
    from analysis.research_log import other_entries
    from lowrank.deployment.compress_run import RUN_FILE
    from lowrank.distillation import RECORD_FILE
    from sweeps.teachers.registry import CURVE_FILE as TEACHER_CURVE

    assert (other_entries.TEACHER_FILE, other_entries.CURVE_FILE) == (RECORD_FILE, TEACHER_CURVE)
    assert other_entries.COMPRESS_FILE == RUN_FILE


def test_a_grid_is_planned_as_large_as_it_is(studies):
    header = load_study(Path("studies/third")).header.to_json()
    fields = {key: value for key, value in header.items() if key not in ("event", "time")}
    space = {**fields["space"], "search": {"sampler": "grid", "trials": 1000, "stop": "none"}}
    more("third", (Event.STUDY, {**fields, "space": space}), (Event.CLOSED, {"reason": "finished"}))
    assert "| planned | the settings of the grid, at most 1,000 trials" in log("studies/third")
