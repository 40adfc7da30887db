from __future__ import annotations

import csv
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.reporting import render
from analysis.reporting.html_page import Page
from analysis.reporting.render import DrawJob, Picture, drawing_executor
from analysis.reporting.write import PAGE_FILE, write_report
from sweeps.records.events import Status
from sweeps.records.load import load_study
from sweeps.records.names import MLFLOW_FILE, TRACKING_PROGRESS_FILE
from sweeps.records.tables import write_tables
from sweeps.tracking.follower import catch_up
from tests.support.synthetic_data import study, trial
from tests.support.synthetic_study import Plan, write_study

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(HTMLParser):
    """Follows the tags of a page: what is opened is closed, and what it refers to."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, Plan(trials=60, epochs=6))
    return write_report(load_study(folder), folder / "report", folder)


@pytest.fixture
def empty_pictures(monkeypatch):
    """Writes empty pictures: drawing takes most of a report's time, and these tests look at other things."""

    def render(job, folder):
        png = folder / f"{job.name}.png"
        png.write_bytes(b"")
        return Picture(name=job.name, caption=job.caption, wide="", narrow="", colours=frozenset(), png=png)

    monkeypatch.setattr("analysis.reporting.html_page.render_picture", render)


def fail_to_draw(figure, data, layout):
    raise ValueError(f"cannot draw {data}")


class TestProcesses:
    @pytest.fixture(autouse=True)
    def two_processes(self, monkeypatch):
        monkeypatch.setattr("analysis.reporting.render.MIN_TRIALS", 1)
        monkeypatch.setattr("analysis.reporting.render.usable_cores", lambda: 2)

    def test_several_processes_write_the_same_bytes_as_one(self, report, tmp_path):
        folder = report.parent.parent
        assert write_report(load_study(folder), tmp_path / "report", folder).read_bytes() == report.read_bytes()
        for path in report.parent.iterdir():
            assert (tmp_path / "report" / path.name).read_bytes() == path.read_bytes()

    def test_a_picture_that_cannot_be_drawn_fails_the_page(self, tmp_path):
        with drawing_executor(trials=1) as executor:
            page = Page("a study", tmp_path, executor)
            page.picture(DrawJob(name="front", caption="", draw=fail_to_draw, data="tea"))
            with pytest.raises(ValueError, match="cannot draw tea"):
                page.html()


def test_a_command_in_the_answer_is_shown_as_code(tmp_path):
    with drawing_executor(trials=1) as executor:
        page = Page("a study", tmp_path, executor)
        page.answer(["More seeds would: `python sweeps/run.py --resume <a>`, 3 trainings."])
        html = page.html()
    assert "<p>More seeds would: <code>python sweeps/run.py --resume &lt;a&gt;</code>, 3 trainings.</p>" in html


def test_the_page_says_that_a_study_has_not_ended(tmp_path, empty_pictures):
    texts = {}
    for closed in (None, "interrupted", "finished"):
        folder = tmp_path / str(closed)
        write_study(folder, Plan(trials=4, epochs=2, closed=closed))
        texts[closed] = write_report(load_study(folder), folder / "report", folder).read_text()
    assert "The study had not ended when this was written (8 trials, 0 of them running" in texts[None]
    assert "The study was stopped before its end (8 trials" in texts["interrupted"]
    assert "all below may change" not in texts["finished"]


def test_the_page_and_its_tables_have_balanced_errors_beside_the_others(tmp_path, empty_pictures):
    folder = write_study(tmp_path / "study", Plan(trials=4, epochs=2))
    record = load_study(folder)
    completed = [trial for trial in record.trials.values() if trial.status is Status.COMPLETED]
    best = min(completed, key=lambda trial: trial.val_error)
    best.epochs[best.last_epoch]["val_balanced_error"] = 9.25
    html = write_report(record, tmp_path / "report", folder).read_text()
    assert f">{best.val_error:.2f} %, balanced 9.25 %</td>" in html
    rows = {row["trial_id"]: row["balanced_error"] for row in read(tmp_path / "report" / "trials.csv")}
    assert rows[best.trial_id] == "9.25"
    assert {value for trial_id, value in rows.items() if trial_id != best.trial_id} == {""}


def test_pictures_and_tables_of_an_earlier_report_are_deleted(tmp_path, empty_pictures):
    folder, report = write_study(tmp_path / "study", Plan(trials=24, epochs=2)), tmp_path / "report"
    write_report(load_study(folder), report, folder)
    other = report / "mine.csv"
    other.write_text("not the report's")
    before = {path.name for path in report.iterdir()}
    study = load_study(folder)
    for record in study.trials.values():
        record.broken = "wrong labels" if record.method != "tucker" else ""
    write_report(study, report, folder)
    fresh = tmp_path / "fresh"
    write_report(study, fresh, folder)
    assert {path.name for path in report.iterdir()} == {path.name for path in fresh.iterdir()} | {other.name}
    assert {"heat_1_ACDC.png", "heat_1_ACDC.csv"} <= before - {path.name for path in report.iterdir()}


class TestPage:
    def test_the_page_fetches_nothing(self, report):
        text = report.read_text()
        assert not re.search(r"(https?:)?//", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL))
        assert "@import" not in text
        assert "url(#" in text  # clip paths of the pictures: within the page
        assert not re.search(r"url\((?!#)", text)

    def test_tags_are_closed_links_exist_and_ids_are_unique(self, report):
        checker = Checker()
        checker.feed(report.read_text())
        assert checker.open == []
        assert len(checker.ids) == len(set(checker.ids))
        for link in checker.links:
            target = link.removeprefix("#")
            assert target in checker.ids if link.startswith("#") else (report.parent / link).is_file(), link

    def test_each_picture_is_also_a_png_and_each_table_a_csv(self, report):
        folder = report.parent
        assert {path.name for path in folder.glob("*.png")} >= {
            "front_params.png", "front_mult_adds.png", "learning_curves.png", "ablation.png",
            "importance_all_sizes.png", "importance_within_budgets.png",
        }  # fmt: skip
        tables = {path.name for path in folder.glob("*.csv")}
        assert tables >= {"best.csv", "front.csv", "trials.csv", "ablation.csv", "failures.csv", "cost.csv"}
        rows = read(folder / "trials.csv")
        assert len(rows) == 62
        assert {row["on_front_params"] for row in rows} == {"True", "False"}
        assert not list(folder.glob("*.tmp"))

    def test_light_dark_narrow_and_print(self, report):
        text = report.read_text()
        for part in ("prefers-color-scheme:dark", "max-width:640px", "@media print", "width=device-width"):
            assert part in text
        drawn = text.count('<div class="wide"')
        assert drawn == text.count('<div class="narrow"') == text.count("<figcaption>") > 5

    def test_tags_in_a_question_are_escaped(self, tmp_path):
        record = study(trial("a"), trial("b", 50), question="<script>alert(1)</script> & more?")
        text = write_report(record, tmp_path, tmp_path).read_text()
        assert "<script>" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more?" in text

    def test_a_study_without_a_completed_trial_has_a_page(self, tmp_path):
        record = study(trial("a", error=None, params=10))
        text = write_report(record, tmp_path, tmp_path).read_text()
        assert "there is no answer yet" in text
        assert "No trial was trained to its end." in text


class TestSources:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, from within MLflow
    def test_tables_and_a_tracking_store_give_the_same_report(self, tmp_path, blank_store, empty_pictures):
        folder = write_study(tmp_path / "mine", Plan(name="mine", trials=8, epochs=3))
        shutil.copy(blank_store, folder / MLFLOW_FILE)
        from sweeps.tracking.follower import Follower

        uri = f"sqlite:///{folder}/mlflow.db"
        assert catch_up(Follower(folder, uri)) is None
        assert main(["report", "--study", "mine", "--studies", str(tmp_path), "--out", str(tmp_path / "a")]) == 0
        options = ["--tracking-uri", uri, "--studies", str(tmp_path), "--out", str(tmp_path / "b")]
        assert main(["report", "--study", "mine", *options]) == 0
        record = load_study(folder)
        (tmp_path / "tables").mkdir()
        write_tables(record, tmp_path / "tables")
        assert main(["report", "--study", str(tmp_path / "tables"), "--out", str(tmp_path / "c")]) == 0
        for name in ("trials", "front", "learning_curves", "cost"):
            texts = [(tmp_path / source / f"{name}.csv").read_text() for source in "abc"]
            assert texts[0] == texts[1] == texts[2], name

    @pytest.mark.parametrize(("arguments", "message"), [
        (["report", "--study", "nope"], "error: unknown study 'nope'"),
        (["report", "--study", "x", "--tracking-uri", "sqlite:////nowhere/at/all.db"], "error: there is no MLflow"),
        (["compare", "one"], "a comparison needs two studies or more, but got 1"),
        (["compare", "a", "b", "--reference", "many"], "--reference must be PARAMS,ERROR"),
        (["export", "--study", "nope"], "error: unknown study 'nope'"),
        (["collate", "one", "--name", "two"], "collating needs two studies or more, but got 1"),
        (["collate", "a", "b", "--name", "../up"], "--name must be a plain name"),
    ])  # fmt: skip
    def test_bad_input_is_one_line(self, arguments, message, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("arguments", "message"), [
        (["export", "--study", "x", "--pick", "fastest"], "invalid choice: 'fastest' (choose from"),
        (["export", "--study", "x", "--max-params", "many"], "invalid float value: 'many'"),
        (["report"], "the following arguments are required: --study"),
        (["mark", "x"], "the following arguments are required: trial"),
    ])  # fmt: skip
    def test_a_mistyped_command_is_one_line(self, arguments, message, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1

    @pytest.mark.parametrize("command", [["report", "--study", "one"], ["compare", "one", "two"]])
    def test_an_output_folder_that_is_a_file_is_refused(self, command, tmp_path, capsys):
        for name in ("one", "two"):
            write_study(tmp_path / name, Plan(name=name, trials=4, epochs=2))
        (tmp_path / "file").write_text("mine")
        assert main([*command, "--studies", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
        expected = f"error: --out must be a folder that can be written, but got {tmp_path}/file\n"
        assert capsys.readouterr().err == expected
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("there_is_a_browser", [True, False])
    def test_open_shows_the_page_or_says_where_it_is(
        self, there_is_a_browser, tmp_path, monkeypatch, capsys, empty_pictures
    ):
        opened: list[str] = []

        def browse(address: str) -> bool:
            opened.append(address)
            return there_is_a_browser

        monkeypatch.setattr("analysis.cli.arguments.webbrowser.open", browse)
        folder = write_study(tmp_path / "mine", Plan(trials=4, epochs=2))
        assert main(["report", "--study", str(folder), "--open"]) == 0
        assert opened == [(folder / "report" / PAGE_FILE).as_uri()]
        message = f"there is no browser here that could be started; open {opened[0]}"
        assert (message in capsys.readouterr().err) is not there_is_a_browser

    def test_the_report_is_pushed_to_the_store_of_a_closed_study(self, tmp_path, monkeypatch):
        pushed: list[Path] = []
        monkeypatch.setattr("analysis.sources.push_to_mlflow.push_study", pushed.append)
        monkeypatch.setattr("analysis.report.write_report", lambda study, folder, *_: folder / PAGE_FILE)
        closed = write_study(tmp_path / "closed", Plan(trials=4, epochs=2))
        running = write_study(tmp_path / "running", Plan(trials=4, epochs=2, closed=None))
        assert main(["report", "--study", str(closed)]) == 0
        assert pushed == []  # MLflow does not know it
        for folder in (closed, running):
            (folder / TRACKING_PROGRESS_FILE).write_text("{}")
            assert main(["report", "--study", str(folder)]) == 0
        assert main(["report", "--study", str(closed), "--out", str(tmp_path / "elsewhere")]) == 0
        assert pushed == [closed]


def test_a_long_path_of_the_temporary_folder_costs_processes_and_no_report(monkeypatch, tmp_path):
    """Sockets of a server of processes would lie in it, and their paths have a limit."""
    monkeypatch.setattr(render, "usable_cores", lambda: 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(render.forkserver, "ensure_running", lambda: pytest.fail("a server was started"))
    render.start_forkserver()
    with render.drawing_executor(10 * render.MIN_TRIALS) as executor:
        assert isinstance(executor, render.InlineExecutor)
