from __future__ import annotations

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.reporting.html_page import Page
from analysis.reporting.render import DrawJob, drawing_executor
from analysis.reporting.write import PAGE_FILE, write_report
from sweeps.records.load import load_study
from sweeps.records.names import MLFLOW_FILE, PROGRESS_FILE
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
        found = dict(attrs)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
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


def draw_nothing_known(figure, data, layout):
    raise ValueError(f"nothing known of {data}")


class TestProcesses:
    @pytest.fixture(autouse=True)
    def two_processes(self, monkeypatch):
        monkeypatch.setattr("analysis.reporting.render.MIN_TRIALS", 1)
        monkeypatch.setattr("analysis.reporting.render.usable_cores", lambda: 2)

    def test_processes_draw_to_the_last_byte_what_one_does(self, report, tmp_path):
        folder = report.parent.parent
        assert write_report(load_study(folder), tmp_path / "report", folder).read_bytes() == report.read_bytes()
        for path in report.parent.iterdir():
            assert (tmp_path / "report" / path.name).read_bytes() == path.read_bytes()

    def test_a_picture_that_cannot_be_drawn_fails_the_page(self, tmp_path):
        with drawing_executor(trials=1) as executor:
            page = Page("a study", tmp_path, executor)
            page.picture(DrawJob(name="front", caption="", draw=draw_nothing_known, data="tea"))
            with pytest.raises(ValueError, match="nothing known of tea"):
                page.html()


def test_a_study_under_way_says_so(tmp_path):
    found = {}
    for closed in (None, "interrupted", "finished"):
        folder = tmp_path / str(closed)
        write_study(folder, Plan(trials=4, epochs=2, closed=closed))
        found[closed] = write_report(load_study(folder), folder / "report", folder).read_text()
    assert "The study had not ended when this was written (8 trials, 0 of them running" in found[None]
    assert "The study was stopped before its end (8 trials" in found["interrupted"]
    assert "all below may change" not in found["finished"]


def test_no_picture_or_table_stays_of_records_that_count_no_more(tmp_path):
    folder, place = write_study(tmp_path / "study", Plan(trials=24, epochs=2)), tmp_path / "report"
    write_report(load_study(folder), place, folder)
    other = place / "mine.csv"
    other.write_text("not the report's")
    before = {path.name for path in place.iterdir()}
    study = load_study(folder)
    for each in study.trials.values():
        each.broken = "wrong labels" if each.method != "tucker" else ""
    write_report(study, place, folder)
    fresh = tmp_path / "fresh"
    write_report(study, fresh, folder)
    assert {path.name for path in place.iterdir()} == {path.name for path in fresh.iterdir()} | {other.name}
    assert {"heat_1_ACDC.png", "heat_1_ACDC.csv"} <= before - {path.name for path in place.iterdir()}


class TestPage:
    def test_it_needs_nothing_from_elsewhere(self, report):
        text = report.read_text()
        assert not re.search(r"(https?:)?//", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL))
        assert "@import" not in text
        assert "url(#" in text  # clip paths of the pictures: within the page
        assert not re.search(r"url\((?!#)", text)

    def test_tags_are_closed_links_lead_somewhere_and_ids_are_one(self, report):
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

    def test_a_question_cannot_write_tags(self, tmp_path):
        made = study(trial("a"), trial("b", 50), question="<script>alert(1)</script> & more?")
        text = write_report(made, tmp_path, tmp_path).read_text()
        assert "<script>" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more?" in text

    def test_a_study_in_which_nothing_was_completed(self, tmp_path):
        made = study(trial("a", error=None, params=10))
        text = write_report(made, tmp_path, tmp_path).read_text()
        assert "there is no answer yet" in text
        assert "No trial was trained to its end." in text


class TestSources:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, from within MLflow
    def test_tables_and_a_tracking_store_tell_the_same(self, tmp_path, blank_store):
        folder = write_study(tmp_path / "mine", Plan(name="mine", trials=8, epochs=3))
        shutil.copy(blank_store, folder / MLFLOW_FILE)
        from sweeps.tracking.follower import Follower

        uri = f"sqlite:///{folder}/mlflow.db"
        assert catch_up(Follower(folder, uri)) is None
        assert main(["report", "--study", "mine", "--studies", str(tmp_path), "--out", str(tmp_path / "a")]) == 0
        asked = ["--tracking-uri", uri, "--studies", str(tmp_path), "--out", str(tmp_path / "b")]
        assert main(["report", "--study", "mine", *asked]) == 0
        made = load_study(folder)
        (tmp_path / "tables").mkdir()
        write_tables(made, tmp_path / "tables")
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
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
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
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1

    @pytest.mark.parametrize("command", [["report", "--study", "one"], ["compare", "one", "two"]])
    def test_nothing_is_written_where_a_file_is(self, command, tmp_path, capsys):
        for name in ("one", "two"):
            write_study(tmp_path / name, Plan(name=name, trials=4, epochs=2))
        (tmp_path / "file").write_text("mine")
        assert main([*command, "--studies", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
        expected = f"error: --out must be a folder that can be written, but got {tmp_path}/file\n"
        assert capsys.readouterr().err == expected
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("there_is_a_browser", [True, False])
    def test_open_shows_the_page_or_says_where_it_is(self, there_is_a_browser, tmp_path, monkeypatch, capsys):
        shown: list[str] = []

        def browse(address: str) -> bool:
            shown.append(address)
            return there_is_a_browser

        monkeypatch.setattr("analysis.cli.arguments.webbrowser.open", browse)
        folder = write_study(tmp_path / "mine", Plan(trials=4, epochs=2))
        assert main(["report", "--study", str(folder), "--open"]) == 0
        assert shown == [(folder / "report" / PAGE_FILE).as_uri()]
        said = f"there is no browser here that could be started; open {shown[0]}"
        assert (said in capsys.readouterr().err) is not there_is_a_browser

    def test_it_goes_into_the_store_that_has_the_study_once_that_is_closed(self, tmp_path, monkeypatch):
        brought: list[Path] = []
        monkeypatch.setattr("analysis.sources.push_to_mlflow.push_study", brought.append)
        monkeypatch.setattr("analysis.report.write_report", lambda study, folder, *rest: folder / PAGE_FILE)
        closed = write_study(tmp_path / "closed", Plan(trials=4, epochs=2))
        running = write_study(tmp_path / "running", Plan(trials=4, epochs=2, closed=None))
        assert main(["report", "--study", str(closed)]) == 0
        assert brought == []  # MLflow does not know it
        for folder in (closed, running):
            (folder / PROGRESS_FILE).write_text("{}")
            assert main(["report", "--study", str(folder)]) == 0
        assert main(["report", "--study", str(closed), "--out", str(tmp_path / "elsewhere")]) == 0
        assert brought == [closed]
