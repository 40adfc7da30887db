"""A teacher whose training the space describes: trained once before the first study, named by what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank.data import ImageData
from lowrank.distillation.teacher_files import RECORD_FILE, read_record
from lowrank.errors import InputError
from sweeps.run import main
from sweeps.space.model import Space
from sweeps.space.parse import parse_space, read_space, teacher_space
from sweeps.teachers.ensure import ensure_teacher
from sweeps.trials.planned_teacher import UNTRAINED, describe_teacher, with_teacher_name
from sweeps.trials.resolver import Resolver
from tests.support import studies
from tests.support.teachers import small_data, write_teacher

pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy

TRAINED = {"train": {"epochs": 1, "batch_size": 50}}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_data()


def content(teacher: Any = TRAINED, **sections: Any) -> dict[str, Any]:
    return {
        "question": "Which?", "data": {"train_images": 200}, "network": {"name": "wrn_10_1", "width": 0.5},
        "teacher": teacher, "train": {"epochs": 2, "batch_size": 64, "attention_weight": {"choice": [0, 60]}},
        "method": {"name": "bottleneck"}, "budget": {"params": 0.8, "relative_to": "separable"},
        "search": {"sampler": "grid", "stop": "none"}, **sections,
    }  # fmt: skip


def space(*args: Any, **sections: Any) -> Space:
    return parse_space("small", content(*args, **sections))


def test_its_name_follows_from_network_data_and_recipe(data):
    def name(epochs: int = 1, images: int = 200, **search: Any) -> str:
        unnamed = space({"train": {"epochs": epochs}}, data={"train_images": images}, search=search)
        teacher = with_teacher_name(unnamed, data if images == 200 else small_data(images)).teacher
        assert teacher is not None
        return str(teacher.name)

    assert name().startswith("wrn_10_1_")
    assert name() == name(seed=5)  # of the study
    assert len({name(), name(epochs=2), name(images=300)}) == 3


def test_a_named_teacher_that_exists_is_used(data, tmp_path):
    write_teacher(tmp_path, "mine", data)
    named = space({"name": "mine", **TRAINED})
    assert with_teacher_name(named, data) is named
    teacher = ensure_teacher(named, data, tmp_path)
    assert teacher is not None
    assert teacher.name == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_is_the_spaces_network_dense_unless_another_is_named():
    training = teacher_space(space())
    assert (training.network.name, training.network.width, training.epochs) == ("wrn_10_1", 0.5, 1)
    other = teacher_space(space({"network": "wrn_16_1", **TRAINED}))
    assert (other.network.name, other.network.width) == ("wrn_16_1", 1.0)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({}, "above 0 needs a `teacher`"),
        ({"train": 3}, "`teacher.train`: must be a section of fields, such as {name: value}, but got 3"),
        ({"train": {"epocs": 3}}, "`teacher.train`: unknown field `train.epocs`; choose from: "),
        ({"train": {"epochs": 0}}, "`teacher.train`: `train.epochs`: must be greater than or equal to 1"),
        ({"train": {"epochs": {"choice": [1, 2]}}}, "`teacher.train`: a teacher has one value of each field, but"),
        ({"train": {"kd_weight": 0.5}}, "`teacher.train`: `train.kd_weight` above 0 needs a `teacher`"),
    ],
)
def test_mistakes_are_one_line(teacher, message):
    with pytest.raises(InputError, match=message) as caught:
        space(teacher)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_is_one_line_before_anything_is_trained(data, tmp_path):
    with pytest.raises(InputError, match="wrn_9") as caught:
        ensure_teacher(space({"network": "wrn_9", **TRAINED}), data, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_searched_network_cannot_be_trained_as_its_own_teacher():
    with pytest.raises(InputError, match=r"`teacher.train` needs `teacher.network` where the space's own network is"):
        space(network={"name": "wrn_10_1", "width": {"choice": [0.5, 1.0]}}, budget={"params": 3000})


def test_a_plan_trains_nothing_and_says_what_will_be_trained(data, tmp_path, capsys):
    planned = describe_teacher(space(), data, tmp_path)
    assert planned is not None
    assert planned.weights.sha256 == UNTRAINED
    distilled = Resolver(space(), data, planned).resolve({"train.attention_weight": 60})
    assert distilled.specification.teacher.name == planned.name
    assert list(tmp_path.iterdir()) == []
    assert main(["--space", "methods", "--plan", "--teachers", str(tmp_path)]) == 0
    assert "not there yet, trained first for 20 epochs" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_it_is_trained_once_stored_and_registered_as_any_other(data, tmp_path, capsys):
    first = ensure_teacher(space(), data, tmp_path)
    output = capsys.readouterr().out
    assert "is not there yet and is trained first" in output
    assert "is version 1 in the model registry" in output
    again = ensure_teacher(space(), data, tmp_path)
    assert capsys.readouterr().out == ""
    assert first is not None
    assert again == first
    record = read_record(tmp_path / first.name / RECORD_FILE)
    assert record is not None
    assert (record.train["epochs"], record.method["name"], record.fingerprint) == (1, "dense", data.fingerprint)


def test_a_space_that_cannot_be_searched_is_refused_before_a_teacher_is_trained(data, tmp_path):
    unreachable = space(budget={"params": 10}, search={"sampler": "random", "stop": "none"})
    with pytest.raises(InputError, match="no method can meet the budget"):
        ensure_teacher(unreachable, data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_space_methods_trains_a_teacher_or_has_none():
    methods = read_space("methods")
    assert methods.domains["train.attention_weight"].corners() == (0, 15)
    assert methods.teacher is not None
    assert methods.teacher.train == {"epochs": 20}
    alone = read_space("methods", ["teacher=null", "train.attention_weight=0"])
    assert alone.teacher is None


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_command_trains_teacher_and_students_and_a_resume_trains_neither_again(tmp_path):
    path, out, teachers = tmp_path / "question.yaml", tmp_path / "studies", tmp_path / "teachers"
    path.write_text(yaml.safe_dump(content()))
    folders = ("--out", str(out), "--teachers", str(teachers))
    done = studies.run("--space", str(path), *folders, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is trained first" in done.stdout
    with_teacher = [bool(trial.specification.teacher) for trial in studies.record(out / "question").trials.values()]
    assert sorted(with_teacher) == [False, True]
    Path(teachers / "mlflow.db").unlink()
    again = studies.run("--resume", "question", *folders, seconds=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "is trained first" not in again.stdout
