"""`python -m analysis mark`: a line of the journal; tables, pictures, report and MLflow follow, and back again."""

from __future__ import annotations

import shutil

import pyarrow.parquet as pq
import pytest

from analysis.__main__ import main
from analysis.reporting.summary_table import count_statuses, describe_broken
from analysis.reporting.write import PAGE_FILE, write_report
from analysis.stats.front import collect_points, pareto_front
from sweeps.records.events import Status
from sweeps.records.fronts import front_trials
from sweeps.records.journal import locked_journal
from sweeps.records.load import load_study
from sweeps.records.names import (
    ARTIFACTS_FOLDER,
    FRONT_PICTURE,
    JOURNAL_FILE,
    MLFLOW_FILE,
    REPORT_FOLDER,
    RESULTS_FILE,
    SUMMARY_TABLE,
)
from tests.support.mlflow_store import rows
from tests.support.synthetic_study import Plan, write_study


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study", Plan(trials=8, epochs=2))


@pytest.fixture
def catch_ups(monkeypatch):
    """The addresses of the stores that would be brought up to date, which takes seconds and is tested once."""
    said = []
    monkeypatch.setattr("analysis.cli.mark.check_store", lambda folder, uri: None)
    monkeypatch.setattr("analysis.cli.mark.push_study", lambda folder, uri: said.append(uri))
    return said


def best(folder):
    return pareto_front(collect_points(load_study(folder)))[-1].trial_id


def test_a_marked_trial_is_in_no_figure_and_still_on_record(folder, catch_ups, capsys):
    victim = best(folder)
    lines = (folder / JOURNAL_FILE).read_bytes()
    assert main(["mark", str(folder), victim, "--broken", "wrong labels"]) == 0
    study = load_study(folder)
    assert (folder / JOURNAL_FILE).read_bytes().startswith(lines)
    assert study.trials[victim].epochs
    assert victim not in [point.trial_id for point in collect_points(study)]
    assert victim not in [trial.trial_id for trial in front_trials(study.trials.values())]
    assert describe_broken(study) == "1 marked as broken, in no figure: wrong labels (1)"
    completed = [trial for trial in study.trials.values() if trial.status is Status.COMPLETED]
    assert next(iter(count_statuses(study))).count == len(completed) - 1
    assert (
        f"trial {victim} (completed) is left out of all tables and fronts from now on: wrong labels"
        in capsys.readouterr().out
    )
    assert catch_ups == [None]
    assert main(["mark", str(folder), victim, "--undo"]) == 0
    assert best(folder) == victim


def test_a_trial_may_be_named_by_the_beginning_of_its_id(folder, catch_ups):
    victim = best(folder)
    noted = ["--note", "odd curve", "--tag", "seen=yes", "--tracking-uri", "http://team:5000"]
    assert main(["mark", str(folder), victim[:6], *noted]) == 0
    assert catch_ups == ["http://team:5000"]
    found = load_study(folder).trials[victim]
    assert (found.notes, found.tags, found.broken) == (["odd curve"], {"seen": "yes"}, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0000", "--broken", "x"], "must be the id of one trial of 'tt_dims', or its beginning; found: none"),
        (["ab", "--broken", "x"], "at least 4 characters of its id, but got 'ab'"),
        (["BEST"], "mark needs one of --broken WHY, --undo, --note TEXT, --tag K=V"),
        (["BEST", "--undo"], "is not marked as broken, so there is nothing to undo"),
        (["BEST", "--broken", " "], "--broken must say why"),
        (["BEST", "--broken", "x", "--undo"], "--broken and --undo contradict each other"),
        (["BEST", "--tag", "status=fine"], "the tag 'status' is reserved"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(folder, catch_ups, arguments, message, capsys):
    before = (folder / JOURNAL_FILE).read_bytes()
    asked = [best(folder) if argument == "BEST" else argument for argument in arguments]
    assert main(["mark", str(folder), *asked]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (folder / JOURNAL_FILE).read_bytes() == before
    assert not catch_ups


def test_while_a_driver_runs_nothing_is_marked(folder, catch_ups, capsys):
    victim = best(folder)
    with locked_journal(folder):
        assert main(["mark", str(folder), victim, "--broken", "x"]) == 2
    said = capsys.readouterr().err
    assert "is being run by another process; stop it with Ctrl-C, mark the trial, and go on with --resume" in said
    assert best(folder) == victim


def test_an_address_that_is_none_is_refused_before_anything_is_written(folder, capsys):
    before = (folder / JOURNAL_FILE).read_bytes()
    assert main(["mark", str(folder), best(folder), "--broken", "x", "--tracking-uri", "ftp://team"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the tracking URI must be one of sqlite:///FILE, http://HOST:PORT")
    assert said.count("\n") == 1
    assert (folder / JOURNAL_FILE).read_bytes() == before


def test_no_picture_stays_of_trials_that_count_no_more(tmp_path, catch_ups, capsys):
    folder = write_study(tmp_path / "study", Plan(trials=1, epochs=2, references=False, infeasible=0, endings=False))
    main(["summary", str(folder)])
    assert (folder / FRONT_PICTURE).is_file()
    assert main(["mark", str(folder), best(folder), "--broken", "x"]) == 0
    assert not (folder / FRONT_PICTURE).exists()
    assert "made again: summary.csv; the sampler learns of it" in capsys.readouterr().out


def parent(folder) -> str:
    """The parent run's id."""
    ((run,),) = rows(folder / MLFLOW_FILE, "select run_uuid from tags where key = 'study_key'")
    return run


def stored(folder) -> dict[str, bytes]:
    """Content of the parent run's artifacts by path."""
    place = folder / ARTIFACTS_FOLDER / parent(folder) / "artifacts"
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.slow  # three trackers, each of which imports MLflow, and two reports
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_mlflow_tables_pictures_and_report_follow_at_once(folder, blank_store, capfd):
    shutil.copy(blank_store, folder / MLFLOW_FILE)
    victim = best(folder)
    query = f"""
        select t.key, t.value from tags t join tags i on i.run_uuid = t.run_uuid
        where i.key = 'trial_id' and i.value = '{victim}'
    """
    main(["summary", str(folder)])
    write_report(load_study(folder), folder / REPORT_FOLDER, folder)
    made = ("report/report.html", "report/front.csv", "front.png", "summary.csv", "results.parquet")
    assert main(["mark", str(folder), victim, "--broken", "wrong labels"]) == 0
    assert f"made again: {FRONT_PICTURE}, {SUMMARY_TABLE}, report/; " in capfd.readouterr().out
    assert dict(rows(folder / MLFLOW_FILE, query))["broken"] == "wrong labels"
    others = rows(folder / MLFLOW_FILE, "select count(*) from tags where key = 'broken' and value = 'no'")
    assert others == [(9,)]
    row = next(row for row in pq.read_table(folder / RESULTS_FILE).to_pylist() if row["trial_id"] == victim)
    assert row["broken"] == "wrong labels"
    found = stored(folder)
    assert {name: found[name] for name in made} == {name: (folder / name).read_bytes() for name in made}
    assert victim not in found["report/front.csv"].decode()
    old = folder / ARTIFACTS_FOLDER / parent(folder) / "artifacts" / REPORT_FOLDER / "of_an_earlier_report.png"
    old.write_bytes(b"")
    assert main(["mark", str(folder), victim, "--undo"]) == 0
    assert not old.exists()
    assert dict(rows(folder / MLFLOW_FILE, query))["broken"] == "no"
    found = stored(folder)
    assert found["report/report.html"] == (folder / REPORT_FOLDER / PAGE_FILE).read_bytes()
    assert victim in found["report/front.csv"].decode()
    assert "records are in sqlite:///" in capfd.readouterr().out
