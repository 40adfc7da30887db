"""The command line: what it lists and plans, and the one line and exit code 2 of every mistake."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import yaml

from lowrank.errors import InputError
from sweeps.records.events import Event
from sweeps.records.fronts import decidable_difference
from sweeps.records.journal import Journal
from sweeps.records.names import JOURNAL_FILE, LOCK_FILE, SPACE_FILE
from sweeps.records.study_folders import write_space_file
from sweeps.run import main
from sweeps.space import StoredOptions
from sweeps.space.files import available_spaces
from sweeps.space.parse import read_space
from sweeps.space.run_options import RunOptions
from sweeps.space.settings import parse_time
from sweeps.study import start
from sweeps.study.plan_report import _decidable_line


def test_list_shows_every_space_with_its_question(capsys):
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name in available_spaces():
        assert name in shown
    assert shown.count("?") >= len(available_spaces())


def test_list_as_json(capsys):
    assert main(["--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listed} == set(available_spaces())
    assert all(entry["question"] for entry in listed)


def test_plan_says_sizes_work_and_time_and_trains_nothing(capsys, tmp_path):
    assert main(["--space", "tt_dims", "--plan", "--json", "--out", str(tmp_path / "studies")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["trials"] == 26
    assert 26_000 < plan["smallest"] < plan["largest"] <= 150_963
    assert len(plan["strata"]) == 4
    assert plan["most_work"] > 1e12
    assert plan["most_seconds"] > 0
    assert not (tmp_path / "studies").exists()


def test_plan_of_the_grid_counts_networks_once(capsys):
    assert main(["--space", "tt_schedule", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "122 at most, references included, of 129 points" in shown
    assert "differences that can be told from chance (in 4 of 5 studies; less often where seeds differ), " in shown
    assert "work: " in shown


@pytest.mark.parametrize(("seeds", "words"), [(1, "one seed"), (3, "3 seeds")])
def test_a_plan_says_which_difference_the_study_will_decide(seeds, words):
    decided = [f"{decidable_difference(288, seeds, error):.1f} points at an error of {error} %" for error in (2, 5, 20)]
    assert _decidable_line(288, seeds) == (
        "differences that can be told from chance (in 4 of 5 studies; less often where seeds differ), 288 images, "
        + f"{words}: {', '.join(decided)}"
    )


def test_plan_names_what_is_infeasible(capsys):
    assert main(["--space", "tt_dims", "--plan", "--set", "budget.params={choice: [0.01, 0.0352]}"]) == 0
    shown = capsys.readouterr().out
    assert "cannot be met: params <= 7,548: " in shown
    assert "infeasible (" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--space is missing; choose from: "),
        (["--space", "tt_dims", "--test"], "--test cannot be used with a new study, only with --resume; leave it out"),
        (["--space", "tt_dims", "--repeat-more", "2"], "--repeat-more cannot be used with a new study, only with"),
        (["--space", "nope"], "unknown space 'nope'; choose from: "),
        (["--space", "tt_dims", "--data", "nope"], "unknown data set 'nope'; choose from: "),
        (["--space", "tt_dims", "--set", "method.name=cpp"], "unknown method 'cpp'; choose from: "),
        (["--space", "tt_dims", "--set", "trian.lr=1"], "unknown section `trian`"),
        (["--space", "tt_dims", "--set", "network.name=resnet10"], "unknown network 'resnet10'; choose from: "),
        (["--space", "tt_dims", "--trials", "0"], "`search.trials`: must be greater than or equal to 1, but got 0"),
        (["--space", "tt_dims", "--time", "soon"], "a time must be a number above 0 with s, m or h"),
        (["--space", "tt_dims", "--set", "budget.params=0.01"], "no method can meet the budget: "),
        (["--space", "tt_dims", "--data", "parquet:/nowhere"], "there is no such file or folder"),
        (["--space", "tt_dims", "--tracking-uri", "ftp://x"], "the tracking URI must be one of"),
        (["--space", "tt_dims", "--tracking-uri", "http://127.0.0.1:9"], "must name a running MLflow server"),
        (["--space", "tt_dims", "--name", "a/b"], "--name must be up to 80 letters, digits"),
        (["--space", "tt_dims", "--address", "127.0.0.1:1"], "nothing answers at 127.0.0.1:1"),
        (["--space", "tt_dims", "--address", "there"], "--address must be auto or HOST:PORT, but got 'there'"),
        (["--space", "tt_dims", "--name", "it's"], "--name must be up to 80 letters, digits"),
        (["--space", "tt_dims", "--name", "n" * 300], "--name must be up to 80 letters, digits"),
        (["--space", "tt_dims", "--tracking-uri", "http://[::1"], "the tracking URI must be one of"),
        (["--space", "tt_dims", "--tracking-uri", "http://localhost:abc"], "the tracking URI must be one of"),
        (["--space", "tt_dims", "--seed", "9" * 23], "`search.seed`: must be less than"),
        (["--space", "tt_dims", "--set", "train.lr=.inf"], "a number must be finite, but got .inf"),
        (["--space", "tt_dims", "--cpus-per-trial", "0.00001"], "greater than or equal to 0.1"),
        (["--resume", "nope"], "no study 'nope' in "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    out = tmp_path / "studies"
    assert main([*arguments, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (None, None)])
def test_times(text, seconds):
    assert parse_time(text) == seconds


def test_studies_cannot_be_kept_under_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["--space", "tt_dims", "--out", str(tmp_path / "file" / "studies")]) == 2
    assert "is not a folder that can be written" in capsys.readouterr().err


@pytest.fixture
def kept(tmp_path):
    """A study's folder as a killed driver leaves it."""
    folder = tmp_path / "studies" / "kept"
    write = StoredOptions(space="tt_dims", data_dir=None, tracking_uri=None)
    folder.mkdir(parents=True)
    write_space_file(folder, read_space("tt_dims").source, write)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan"], "--plan and --resume are two commands"),
        (["--name", "other"], "--name cannot be used with --resume"),
        (["--set", "train.lr=1"], "--set would change the question of the study"),
        (["--seed", "0"], "--seed would change the question of the study"),
        (["--repeat-more", "0"], "--repeat-more must be at least 1, but got 0"),
        (["--time", "soon"], "a time must be a number above 0 with s, m or h"),
        (["--tracking-uri", "foo://bar"], "the tracking URI must be one of"),
        (["--gpus-per-trial", "-1"], "`resources.gpus_per_trial`: must be a number from 0, or auto, but got -1"),
        (["--processes-per-trial", "0"], "`resources.processes_per_trial`: must be greater than or equal to 1"),
    ],
)
def test_a_resume_that_makes_no_sense_changes_nothing(kept, arguments, message, capsys):
    before = (kept / "space.yaml").read_bytes()
    assert main(["--resume", "kept", "--out", str(kept.parent), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert (kept / "space.yaml").read_bytes() == before
    assert {path.name for path in kept.iterdir()} <= {"space.yaml", LOCK_FILE}


def test_repeat_more_raises_the_seeds_of_the_front_and_leaves_the_search_as_it_was():
    content = {"search": {"sampler": "tpe", "trials": 26}}
    start._add_repeats(content, 2)
    assert content["search"] == {"sampler": "tpe", "trials": 26, "repeats": 3}


def test_repeat_more_keeps_a_whole_grid_whole():
    content = {"search": {"sampler": "grid", "trials": 12, "repeats": 2}}  # six settings
    start._add_repeats(content, 1)
    assert content["search"] == {"sampler": "grid", "trials": 18, "repeats": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("space.yaml", "question: [", "is not YAML"),
        ("space.yaml", "question: Which?", "its section `options` is not whole"),
        ("journal.jsonl", '{"event": "study"\n', "line 1 at byte 0"),
    ],
)
def test_a_damaged_study_is_one_line(kept, name, content, message, capsys):
    (kept / name).write_text(content)
    assert main(["--resume", "kept", "--out", str(kept.parent)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.fixture
def begun(kept):
    """A study whose driver was killed after it had written the header of its journal."""
    with closing(Journal(kept / JOURNAL_FILE)) as journal:
        journal.append(Event.STUDY, name="kept", space=read_space("tt_dims").source, question="Which?")
    return kept


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda content: content["method"]["name"]["choice"].append("cp"), "method.name"),
        (lambda content: content["train"].update(lr=0.5), "train.lr"),
        (lambda content: content.update(references=[]), "references"),
    ],
)
def test_a_question_that_was_changed_in_the_study_is_one_line_with_the_way_on(begun, change, field, capsys):
    """A sampler cannot go on in another space than it began with: Optuna ended in a traceback."""
    content = yaml.safe_load((begun / SPACE_FILE).read_text())
    change(content)
    (begun / SPACE_FILE).write_text(yaml.safe_dump(content))
    assert main(["--resume", "kept", "--out", str(begun.parent)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"`{field}` was changed" in error
    assert "search.warm_start" in error


def test_a_resume_says_which_places_the_study_names_itself(kept, tmp_path, monkeypatch, capsys):
    """Whoever made the folder chose where its records go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "_run_mirrored", lambda *_, **__: 0)
    resume = ["--resume", "kept", "--out", str(kept.parent)]
    assert main(resume) == 0
    assert capsys.readouterr().out == ""
    places = {"storage": str(tmp_path / "a store"), "tracking_uri": "http://me:***@host", "cache_dir": "/mnt/fast",
              "teachers": str(tmp_path / "teachers")}  # fmt: skip
    write_space_file(kept, read_space("tt_dims").source, StoredOptions(space="tt_dims", data_dir=None, **places))
    assert main(resume) == 0
    assert capsys.readouterr().out == (
        f"as the study was begun: --storage '{tmp_path}/a store' --tracking-uri 'http://me:***@host' "
        "--cache-dir /mnt/fast\n"
    )
    assert main([*resume, "--cache-dir", "/mnt/other", "--storage", str(kept.parent)]) == 0
    assert "--cache-dir" not in capsys.readouterr().out


def test_the_address_in_mlflows_own_variable_is_used_and_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    used = start._with_tracking_variable(RunOptions())
    assert used.tracking_uri == f"sqlite:///{tmp_path}/team.db"
    assert capsys.readouterr().out == (f"recording into sqlite:///{tmp_path}/team.db, as MLFLOW_TRACKING_URI says\n")
    assert start._with_tracking_variable(RunOptions(tracking_uri="http://host")).tracking_uri == "http://host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is set: the tracking URI must be one of"):
        start._with_tracking_variable(RunOptions())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert start._with_tracking_variable(RunOptions()).tracking_uri is None


@pytest.mark.parametrize("option", ["--out", "--storage"])
def test_a_folder_in_which_no_database_could_lie_is_refused(option, tmp_path, capsys):
    assert main(["--space", "tt_dims", option, str(tmp_path / "q?x")]) == 2
    assert "the folder of studies must not have `?` in its path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
