"""Several studies from one file: checked before the first starts, run and resumed as one."""

from __future__ import annotations

import pytest
import yaml

from lowrank.errors import InputError
from sweeps.run import main
from sweeps.space.model import Space
from sweeps.space.run_options import RunOptions
from sweeps.study import run_series
from sweeps.study.series import parse_series

SMALL = {
    "question": "Which?",
    "data": {"name": "digits", "train_images": 200},
    "network": {"name": "resnet9", "width": 0.125},
    "train": {"epochs": 1},
    "method": {"name": "tensor_train", "dims": {"int": [2, 3]}},
    "budget": {"params": {"choice": [0.7]}, "relative_to": "separable"},
    "search": {"trials": 2, "sampler": "random", "stop": "none"},
    "studies": [{"name": "plain"}, {"name": "cp", "set": {"method.name": "cp"}, "trials": 1}],
}
OPTIONS = RunOptions(set=["train.epochs=1"], seed=3)


def test_each_study_is_the_file_with_its_own_changes_under_the_command_lines():
    plain, cp = parse_series(SMALL, "both", OPTIONS)
    assert (plain.name, cp.name) == ("plain", "cp")
    assert [member.space.search.trials for member in (plain, cp)] == [2, 1]
    assert cp.space.alternatives[0][0]["name"] == "cp"
    assert {member.space.search.seed for member in (plain, cp)} == {3}


def test_a_study_may_be_another_space():
    (member,) = parse_series({"studies": [{"name": "a", "space": "low_rank", "trials": 3}]}, "both", OPTIONS)
    assert member.space.search.trials == 3
    assert member.space.question.startswith("Is a tensor decomposition")


@pytest.mark.parametrize(
    ("studies", "message"),
    [
        ([], "`studies` must be a list of sections with a `name` each"),
        ([{"set": {}}], "each of `studies` needs a `name`"),
        ([{"name": "a"}, {"name": "a"}], "the names in `studies` must differ, but got a, a"),
        ([{"name": "a", "sett": {}}], "unknown field of `studies` 'sett'; choose from: name, set, space, trials"),
        ([{"name": "a", "set": {"method.name": "cpp"}}], "study 'a': unknown method 'cpp'"),
        ([{"name": "a", "space": "none"}], "unknown space 'none'"),
    ],
)
def test_a_mistake_in_any_study_is_one_line_before_anything_starts(studies, message, tmp_path, capsys):
    with pytest.raises(InputError, match=message):
        parse_series({**SMALL, "studies": studies}, "both", OPTIONS)
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "studies": studies}))
    assert main(["--space", str(path), "--out", str(tmp_path / "studies")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "studies").exists()


def test_the_plan_of_a_series_is_the_plan_of_each_study(tmp_path, capsys):
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    assert main(["--space", str(path), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("trials: ") == 2
    assert "study plain" in shown
    assert "study cp" in shown


def test_a_study_of_a_series_names_no_code_unasked():
    with pytest.raises(InputError, match="study 'plain': the space names code to run, the network 'a:b'"):
        parse_series({**SMALL, "network": "a:b"}, "both", OPTIONS)


def test_paths_of_a_series_begin_where_it_was_started(tmp_path, monkeypatch):
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    for folder in (begun, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(begun)
    (begun / "other.yaml").write_text(yaml.safe_dump({key: SMALL[key] for key in SMALL if key != "studies"}))
    monkeypatch.setattr(run_series, "_run", lambda members, *_: seen.append([member.space for member in members]) or 0)
    seen: list[list[Space]] = []
    listed = [{"name": "a"}, {"name": "b", "space": "other.yaml", "set": {"start.weights": "dense.safetensors"}}]
    (begun / "both.yaml").write_text(yaml.safe_dump({**SMALL, "data": "folder:data/flowers", "studies": listed}))
    assert main(["--space", "both.yaml", "--out", str(tmp_path / "studies"), "--name", "both"]) == 0
    monkeypatch.chdir(elsewhere)
    resume = ["--resume", "both", "--out", str(tmp_path / "studies")]
    assert main(resume) == 2  # the images are outside of this folder's `data`, and a file is no permission
    assert main([*resume, "--data", f"folder:{begun}/data/flowers"]) == 0
    (first, _), (again, other) = seen
    assert first.data.name == again.data.name == f"folder:{begun}/data/flowers"
    assert other.start.weights == f"{begun}/dense.safetensors"
    assert main([*resume, "--seed", "1"]) == 2


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Starts or resumes a series without training; gives the members of each run, and where it is."""
    members = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_series, "_run", lambda studies, *_: members.append(studies) or 0)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({**SMALL, "search": {**SMALL["search"], "seed": 7}}))
    return members


def test_options_of_zero_hold_for_a_resume_too(runs):
    assert main(["--space", "both.yaml", "--seed", "0", "--gpus-per-trial", "0"]) == 0
    assert main(["--resume", "both"]) == 0
    for members in runs:
        assert {member.space.search.seed for member in members} == {0}
        assert {member.space.resources.gpus_per_trial for member in members} == {0.0}


@pytest.mark.parametrize(
    ("options", "trials", "message"),
    [
        (["--trials", "48"], [48, 48], ""),
        (["--max-concurrent", "1"], [2, 1], ""),
        (["--data", "digits"], [2, 1], ""),
        (["--data", "cifar10"], [], "--data must be digits, but got cifar10"),
        (["--trials", "48", "--seed", "3"], [], "--seed would change the question"),
        (["--set", "train.epochs=3"], [], "--set would change the question"),
    ],
)
def test_a_resume_of_a_series_heeds_each_option_or_refuses_it(runs, options, trials, message, capsys):
    assert main(["--space", "both.yaml"]) == 0
    assert main(["--resume", "both", *options]) == (2 if message else 0)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == bool(message)
    assert [member.space.search.trials for members in runs[1:] for member in members] == trials
    assert main(["--resume", "both"]) == 0  # which goes on with what the last one has changed
    assert [member.space.search.trials for member in runs[-1]] == (trials or [2, 1])


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_series_runs_stops_fairly_and_goes_on(tmp_path):
    from tests.support import studies

    path, out = tmp_path / "both.yaml", tmp_path / "studies"
    path.write_text(yaml.safe_dump(SMALL))
    done = studies.run("--space", str(path), "--out", str(out), "--time", "2s")
    assert "--resume both" in done.stdout
    done = studies.run("--resume", "both", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain (ended): 2 of 2 trials completed" in done.stdout
    assert "cp (ended): 1 of 1 trial completed" in done.stdout
    assert "cp, " in done.stdout
    again = studies.run("--resume", "both", "--out", str(out))
    assert again.returncode == 0
    assert "study 1 of 2" not in again.stdout


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
def test_what_two_studies_share_is_trained_once_and_in_the_tables_and_mlflow_of_both(tmp_path):
    from analysis.sources.mlflow import load_from_mlflow
    from tests.support import studies

    grid = {"sampler": "grid", "stop": "none", "trials": 9}
    same = {**SMALL, "search": grid, "method": {"name": "tensor_train", "dims": {"choice": [2, 3]}}}
    listed = [{"name": "one"}, {"name": "two", "set": {"method.dims": {"choice": [3, 2]}}}]
    path, out = tmp_path / "both.yaml", tmp_path / "studies"
    path.write_text(yaml.safe_dump({**same, "studies": listed}))
    done = studies.run("--space", str(path), "--out", str(out), seconds=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "two (ended): 2 of 2 trials completed, 2 of them trained in another of these studies" in done.stdout
    one, two = (studies.record(out / "both" / name) for name in ("one", "two"))
    assert one.trials.keys() == two.trials.keys()
    for name, trial in two.trials.items():
        assert (trial.adopted["study"], trial.val_error) == ("one", one.trials[name].val_error)
        assert trial.attempts == []
    assert load_from_mlflow(f"sqlite:///{out}/both/two/mlflow.db", "two").trials == two.trials


def test_a_study_that_begins_at_a_resume_begins_with_the_options_of_the_series(runs, monkeypatch, tmp_path):
    """Its records do not go to another store, and it is not left out of a group."""
    begun = []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_series, "start_study", lambda space, options: begun.append(options) or 130)
    options = ["--tracking-uri", "http://me:secret@host", "--note", "of the team", "--tag", "a=b", "--group", "chapter"]
    assert main(["--space", "both.yaml", *options]) == 130
    assert "secret" not in (tmp_path / "studies" / "both" / "series.yaml").read_text()
    assert main(["--resume", "both"]) == 130
    assert main(["--resume", "both", "--tracking-uri", "http://me:secret@host", "--note", "later"]) == 130
    options_of_studies = [(study.tracking_uri, study.note, list(study.tag), study.group) for study in begun]
    assert options_of_studies == [
        ("http://me:secret@host", "of the team", ["a=b"], "chapter"),
        ("http://me:***@host", "of the team", ["a=b"], "chapter"),  # which a study refuses without the password
        ("http://me:secret@host", "later", ["a=b"], "chapter"),
    ]
