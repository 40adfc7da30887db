"""The command that trains teachers: stored once, registered, never overwritten, resumed after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lowrank.data import load_data
from lowrank.distillation.teacher_files import RECORD_FILE, WEIGHTS_FILE, find_teacher, read_record
from lowrank.io import find_preprocessing
from lowrank.serving import load_classifier
from lowrank.utils.atomic_files import file_hash
from sweeps.teacher import TeacherConfig, main, make_parser, space_of_teacher
from sweeps.teachers import train as teacher_training
from sweeps.teachers.registry import UNFINISHED, default_uri, register, reserve_name, store_teacher
from sweeps.teachers.train import train_teacher
from sweeps.trials.resolver import Resolver
from tests.support.mlflow_store import rows
from tests.support.studies import ROOT, has_ended
from tests.support.teachers import small_data, write_teacher
from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy

SMALL = [
    "--network", "wrn_10_1", "--epochs", "3", "--set", "network.width=0.5", "--set", "data.train_images=200",
    "--set", "train.batch_size=50",
]  # fmt: skip


def arguments(root: Path, name: str, *more: str) -> list[str]:
    return [*SMALL, "--teachers", str(root), "--name", name, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one teacher, through the whole command."""
    root = tmp_path_factory.mktemp("root") / "teachers"
    assert main(arguments(root, "first")) == 0
    return root


def test_the_record_of_a_teacher_describes_its_training(trained: Path) -> None:
    record = read_record(trained / "first" / RECORD_FILE)
    assert record is not None
    data = small_data()
    assert (record.fingerprint, record.classes, record.image_shape) == (data.fingerprint, 10, (1, 8, 8))
    assert record.network["name"] == "wrn_10_1"
    assert record.sha256 == file_hash(trained / "first" / WEIGHTS_FILE)
    assert record.train["epochs"] == 3
    assert 0 <= record.test_error <= 100
    assert {"torch", "python"} <= record.versions.keys()
    assert record.commit
    assert not list((trained / UNFINISHED).glob("first-*"))
    weights = find_teacher("first", trained)
    weights.check(data)
    assert sum(value.numel() for value in weights.load().parameters()) == record.params


def test_it_is_in_the_model_registry_with_its_errors(trained: Path) -> None:
    database = trained / "mlflow.db"
    tags = dict(rows(database, "select key, value from model_version_tags"))
    record = read_record(trained / "first" / RECORD_FILE)
    assert record is not None
    assert tags["sha256"] == record.sha256
    assert tags["data_fingerprint"] == record.fingerprint
    assert {"val_error", "test_error", "commit", "seed"} <= tags.keys()
    steps = rows(database, "select step from metrics where key = 'val_error' order by step")
    assert steps == [(1,), (2,), (3,)]
    assert rows(database, "select name, version from model_versions") == [("first", 1)]


def test_registering_again_changes_nothing(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--register", "first", "--teachers", str(trained)]) == 0
    assert "first is in the model registry already" in capsys.readouterr().out
    assert rows(trained / "mlflow.db", "select count(*) from model_versions") == [(1,)]


def test_other_weights_under_a_registered_name_are_refused(trained: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path, "first", small_data(), seed=5)
    with pytest.raises(ValueError, match="the model registry has other weights under the name 'first'"):
        register(tmp_path, "first", default_uri(trained))


def test_the_folder_of_a_teacher_says_what_it_expects_of_an_image(trained: Path) -> None:
    """So its weights can be made smaller, and tell classes, without the set that it was trained on."""
    expected, data = find_preprocessing(trained / "first" / WEIGHTS_FILE), small_data()
    assert expected is not None
    assert (expected.mean, expected.std, expected.classes) == (data.mean, data.std, data.classes)
    classifier = load_classifier(trained / "first")
    assert classifier.predict(data.val.images[:3].permute(0, 3, 1, 2).numpy()).shape == (3, 10)


def test_a_name_is_never_overwritten(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_hash(trained / "first" / WEIGHTS_FILE)
    assert main(arguments(trained, "first", "--seed", "1")) == 2
    assert "the teacher 'first' exists in" in capsys.readouterr().err
    assert file_hash(trained / "first" / WEIGHTS_FILE) == before


def test_the_first_of_two_teachers_that_finish_under_one_name_stays(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path, "twice", small_data())
    before = file_hash(folder / WEIGHTS_FILE)
    other = write_teacher(tmp_path / "elsewhere", "twice", small_data(), seed=1)
    record = read_record(other / RECORD_FILE)
    assert record is not None
    with pytest.raises(ValueError, match=r"the teacher 'twice' exists in .* and is never overwritten"):
        store_teacher(tmp_path, record, other / WEIGHTS_FILE, [], small_data())
    assert file_hash(folder / WEIGHTS_FILE) == before
    assert (other / WEIGHTS_FILE).exists()  # what was trained is not lost


def test_only_one_process_trains_a_teacher_of_a_name(tmp_path: Path) -> None:
    with (
        reserve_name(tmp_path, "mine"),
        pytest.raises(ValueError, match="the teacher 'mine' is being trained by another process"),
        reserve_name(tmp_path, "mine"),
    ):
        pass


def test_a_registry_that_does_not_answer_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> str:
        raise OSError("the server is gone")

    monkeypatch.setattr("sweeps.teachers.ensure.register", away)
    assert main(arguments(tmp_path, "kept")) == 0
    assert "not in MLflow's model registry: the server is gone; the teacher itself is kept" in capsys.readouterr().out
    assert (tmp_path / "kept" / RECORD_FILE).exists()
    monkeypatch.undo()
    assert main(["--register", "kept", "--teachers", str(tmp_path)]) == 0
    assert "kept is version 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name", "../up"], "--name must be up to 80 letters"),
        (["--network", "nope"], "unknown network 'nope'; choose from: "),
        (["--data", "nope"], "unknown data set 'nope'"),
        (
            ["--set", "train.lr={choice: [0.1, 0.2]}"],
            "one value of each field, but `train.lr` has several",
        ),
        (["--epochs", "0"], "`train.epochs`: must be greater than or equal to 1, but got 0"),
        (["--set", "train.attention_weight=1000"], "`train.attention_weight` above 0 needs a `teacher`"),
        (["--tracking-uri", "ftp://x"], "the tracking URI must be one of "),
        (["--register", "nobody"], "--name cannot be used with --register; leave it out"),
        (["--list"], "--name cannot be used with --list; leave it out"),
        (["--json"], "--json cannot be used without --list; leave it out"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main([*arguments(tmp_path / "teachers", "fine")[:-2], "--name", "fine", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--register", "nobody"], "no teacher 'nobody' in "),
        (["--list", "--register", "first"], "--register cannot be used with --list; leave it out"),
        (["--list", "--tracking-uri", "http://host"], "--tracking-uri cannot be used with --list; leave it out"),
        (["--register", "first", "--seed", "1"], "--seed cannot be used with --register; leave it out"),
    ],
)
def test_an_option_that_a_task_does_not_use_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*words, "--teachers", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_list_shows_each_teacher(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--teachers", str(trained)]) == 0
    assert capsys.readouterr().out.startswith("first ")
    assert main(["--list", "--json", "--teachers", str(trained)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "first"
    assert main(["--list", "--teachers", str(tmp_path)]) == 0
    assert "no teachers in" in capsys.readouterr().out


def train(root: Path, name: str, on_epoch: Any) -> float:
    options = make_parser().parse_args(arguments(root, name))
    space = space_of_teacher(TeacherConfig(**vars(options)))
    data = load_data(space.data)
    return train_teacher(Resolver(space, data).resolve({}), data, root, name, "cpu", on_epoch=on_epoch).val_loss


def test_a_killed_training_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_training, "CHECKPOINT_SECONDS", 0.0)
    epochs: list[int] = []

    class KilledError(Exception):
        pass

    def die(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 3:  # between its training and its checkpoint
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, "resumed", die)
    resumed = train(tmp_path, "resumed", lambda epoch, metrics: epochs.append(epoch))
    assert epochs == [3]
    assert resumed == train(tmp_path, "whole", lambda epoch, metrics: None)


@pytest.mark.slow
def test_the_command_itself_survives_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "sweeps" / "teacher.py"), *arguments(tmp_path, "hard", "--epochs", "400")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_until(
        lambda: list(tmp_path.glob(f"{UNFINISHED}/hard-*/*.safetensors")), "a checkpoint of the teacher",
        unless=lambda: has_ended(process),
    )  # fmt: skip
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert again.stdout is not None
    lines = [again.stdout.readline() for _ in range(2)]
    again.kill()
    again.communicate()
    assert lines[1].startswith("goes on after epoch ")


def test_a_teacher_is_registered_where_mlflows_own_variable_says(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    write_teacher(tmp_path / "teachers", "kept", small_data())
    uris: list[str | None] = []
    monkeypatch.setattr("sweeps.teachers.ensure.register", lambda root, name, uri: uris.append(uri) or "registered")
    register_kept = ["--register", "kept", "--teachers", str(tmp_path / "teachers")]
    assert main(register_kept) == 0
    assert main([*register_kept, "--tracking-uri", f"sqlite:///{tmp_path}/other.db"]) == 0
    assert uris == [f"sqlite:///{tmp_path}/team.db", f"sqlite:///{tmp_path}/other.db"]
    assert capsys.readouterr().out.count("as MLFLOW_TRACKING_URI says") == 1


def test_what_the_data_leave_out_is_printed_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for label, shade in (("cat", 40), ("dog", 200)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((8, 8, 3), shade + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("not a picture")
    monkeypatch.setattr("sweeps.teachers.register_or_explain", lambda *_: None)  # MLflow takes long to import
    command = ["--network", "mlp", "--data", f"folder:{tmp_path / 'photos'}", "--epochs", "1", "--name", "small"]
    assert main([*command, "--set", "train.batch_size=4", "--teachers", str(tmp_path / "teachers")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (note,) = (line for line in lines if line.startswith("note on the data: ") and "notes.txt" in line)
    assert lines.index(note) < next(index for index, line in enumerate(lines) if line.startswith("small: mlp"))
