"""A recorded trial once more: whatever it was, it is found, checked, and trained under the same id to the same end."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank.data import DataSettings, load_data
from lowrank.errors import InputError
from sweeps.records.events import Event, Role
from sweeps.records.journal import Journal
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord
from sweeps.records.names import CHECKPOINT_FILE, JOURNAL_FILE, TRIALS_FOLDER
from sweeps.run import main
from sweeps.space.parse import parse_space, read_space
from sweeps.study import driver, start
from sweeps.study.retrain import Retrain, select_trial
from sweeps.study.retrain_report import retrain_lines
from sweeps.trials.resolver import Resolver
from sweeps.trials.teacher import resolve_teacher
from tests.support import studies
from tests.support.specifications import change
from tests.support.teachers import small_data, write_teacher

SMALL = [
    "search.sampler=random", "references=[dense]", "train.epochs=2", "data.train_images=200",
    "network={name: wrn_10_1, width: 0.5}",
]  # fmt: skip
POINT = {"method.name": "bottleneck", "train.attention_weight": 60, "budget.params": 0.8}
KINDS: dict[str, tuple[list[str], dict[str, Any], int]] = {
    "taught": ([], POINT, 0),
    "allocated": (["budget.allocation=stage"], {**POINT, "train.attention_weight": 0}, 0),
    "from dense": (["start.how=dense"], POINT, 0),
    "another seed": ([], POINT, 2),
    "thinner": (["method.name=thin_separable"], {**POINT, "method.name": "thin_separable"}, 1),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    write_teacher(folder, "good", small_data())
    return folder


def resolver(teachers: Path, changes: list[str]) -> Resolver:
    space = read_space("distill", [*SMALL, "teacher.name=good", *changes])
    data = load_data(DataSettings(train_images=200))
    return Resolver(space, data, resolve_teacher(space, data, teachers))


def write(folder: Path, *trials, **attempt) -> Path:
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(Event.STUDY, name="mine", space={"resources": {"cpus_per_trial": 1.0}})
    for each in trials:
        journal.append(
            Event.PROPOSED, trial=each.trial_id, role=str(each.role), stratum=each.stratum, parameters=each.point,
            specification=each.specification.to_json(), counts=each.counts, proposal={},
            point_id=each.point_id,
        )  # fmt: skip
        journal.append(Event.ATTEMPT, trial=each.trial_id, **{"device": "cpu", "cpus": 2.0, "gpus": 0.0, **attempt})
    journal.close()
    return folder


def checked(retrain: Retrain, teachers: Path) -> str:
    """The id under which the command would train it."""
    space = parse_space("again", yaml.safe_load(yaml.safe_dump(retrain.content({}))))
    data = load_data(space.data)
    return retrain.check(data, resolve_teacher(space, data, teachers)).new_trial


@pytest.mark.parametrize("kind", KINDS)
def test_every_trial_has_the_same_id_again(tmp_path, teachers, kind):
    changes, point, seed = KINDS[kind]
    trained = resolver(teachers, changes).resolve(point, seed)
    dense = resolver(teachers, changes).reference("dense")
    retrain = select_trial("mine", trained.trial_id[:6], write(tmp_path / "mine", dense, trained).parent)
    assert retrain.name == f"mine_{trained.trial_id[:6]}"
    assert (retrain.trials[0].source is not None) is (kind == "from dense")  # its weights are not there: trained first
    assert retrain.content({})["resources"] == {"cpus_per_trial": 2.0, "gpus_per_trial": 0}
    assert checked(retrain, teachers) == trained.trial_id
    assert retrain.trials[0].specification == trained.specification


def test_a_reference_too(tmp_path, teachers):
    dense = resolver(teachers, []).reference("dense", repeat=1)
    assert dense.role is Role.REFERENCE
    retrain = select_trial(str(write(tmp_path, dense)), dense.trial_id, tmp_path)
    assert checked(retrain, teachers) == dense.trial_id


def test_a_trial_of_two_processes_is_trained_by_two_again(tmp_path, teachers):
    """They have other bits than one; a resume may have asked for them, and the space does not say so."""
    trained = resolver(teachers, []).resolve(POINT)
    retrain = select_trial(str(write(tmp_path, trained, processes=2)), trained.trial_id, tmp_path)
    assert retrain.content({})["resources"] == {
        "cpus_per_trial": 2.0, "gpus_per_trial": 0, "processes_per_trial": 2,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["taught", "allocated", "from dense"])
def test_a_resume_after_a_kill_before_the_first_proposal_trains_that_trial(tmp_path, teachers, monkeypatch, kind):
    changes, point, seed = KINDS[kind]
    trained = resolver(teachers, changes).resolve(point, seed)
    write(tmp_path / "mine", resolver(teachers, changes).reference("dense"), trained)

    def killed_early(space, resolver, config, retrain, history=None, mirror=None):
        driver._write_space(space, config)
        with closing(Journal(config.folder / JOURNAL_FILE)) as journal:
            journal.append(Event.STUDY, name=config.name, repeats=config.origin.to_json())
        return 130

    def resumed(space, resolver, config, retrain=None, history=None, mirror=None):
        with closing(Journal(config.folder / JOURNAL_FILE)) as journal:
            retrain.propose(journal, load_study(config.folder), config.folder, config.origin)
        return 0

    options = ("--out", str(tmp_path), "--teachers", str(teachers))
    monkeypatch.setattr(start, "run_study", killed_early)
    assert main(["--reproduce", "mine", trained.trial_id, *options]) == 130
    monkeypatch.setattr(start, "run_study", resumed)
    name = f"mine_{trained.trial_id[:6]}"
    assert load_study(tmp_path / name).trials == {}
    assert main(["--resume", name, *options]) == 0
    again = load_study(tmp_path / name).trials[trained.trial_id]
    assert again.specification == trained.specification


class TestRefused:
    def test_another_teacher_and_other_images(self, tmp_path, teachers):
        trained = resolver(teachers, []).resolve(POINT)
        retrain = select_trial(str(write(tmp_path, trained)), trained.trial_id, tmp_path)
        (recorded,) = retrain.trials
        changed = replace(recorded, specification=change(recorded.specification, teacher={"weights": "0" * 64}))
        with pytest.raises(InputError, match=r"the teacher good has changed since: its sha256 is \w+\.\.\., not 0000"):
            checked(Retrain((changed,)), teachers)
        changed = replace(recorded, specification=change(recorded.specification, data={"fingerprint": "f00d"}))
        with pytest.raises(InputError, match="but the trial was trained on f00d"):
            checked(Retrain((changed,)), teachers)

    def test_weights_that_nobody_can_make_again(self, tmp_path, teachers):
        trained = resolver(teachers, ["start.how=dense"]).resolve(POINT)
        with pytest.raises(InputError, match="from whose weights it starts, is not in"):
            select_trial(str(write(tmp_path, trained)), trained.trial_id, tmp_path)

    @pytest.mark.parametrize(("arguments", "message"), [
        (["--reproduce", "nope", "abcd"], "unknown study 'nope'"),
        (["--reproduce", "mine", "ffffff"], "'ffffff' must be the id of one trial of 'mine', or its beginning"),
        (["--reproduce", "mine", "abcd", "--trials", "3"], "--trials cannot be used with --reproduce"),
        (["--reproduce", "mine", "old1"], "trial old1 cannot be trained again: its record has no specification"),
    ])  # fmt: skip
    def test_bad_input_is_one_line_and_writes_nothing(self, tmp_path, capsys, arguments, message):
        journal = Journal(tmp_path / "mine" / JOURNAL_FILE)
        journal.append(Event.STUDY, name="mine")
        about = {"role": "search", "stratum": "", "parameters": {}, "counts": {}, "proposal": {}}
        journal.append(Event.PROPOSED, trial="old1", specification={}, **about)
        journal.close()
        assert main([*arguments, "--out", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class TestComparison:
    def pair(self, tmp_path, *, error=5.0, device="cpu") -> StudyRecord:
        for name, last in (("was", 5.0), ("now", error)):
            journal = Journal(tmp_path / name / JOURNAL_FILE)
            origin = {"study": str(tmp_path / "was"), "trial": "abcd", "as": "abcd"}
            journal.append(Event.STUDY, name=name, **({"repeats": origin} if name == "now" else {}))
            journal.append(Event.ATTEMPT, trial="abcd", device="cpu" if name == "was" else device)
            for epoch, value in enumerate((9.0, last), start=1):
                metrics = {"val_error": value, "epoch_seconds": 1.0 if name == "was" else 2.0}
                journal.append(Event.EPOCH, trial="abcd", epoch=epoch, metrics=metrics)
            journal.append(Event.FINISHED, trial="abcd", status="completed")
            journal.close()
        return load_study(tmp_path / "now")

    def test_the_same(self, tmp_path):
        first, second = retrain_lines(self.pair(tmp_path))
        assert first.endswith("was: on record 5 % validation error, completed after epoch 2; now 5 % validation error, "
                              "completed after epoch 2")  # fmt: skip
        assert second.startswith("all 2 epochs that both have came out the same")

    def test_another(self, tmp_path):
        _, second = retrain_lines(self.pair(tmp_path, error=4.0, device="cuda"))
        assert second == "they differ from epoch 2 on (on record on cpu in float32, now on cuda in bfloat16)"

    def test_a_record_that_is_gone_is_said(self, tmp_path):
        now = self.pair(tmp_path)
        (tmp_path / "was" / JOURNAL_FILE).unlink()
        (line,) = retrain_lines(now)
        assert line.startswith("not compared with the record: ")
        assert retrain_lines(StudyRecord()) == []


@pytest.mark.study
@pytest.mark.slow
@pytest.mark.timeout(1200)  # four studies, each with a Ray of its own
def test_the_command_trains_to_the_same_error(tmp_path, teachers):
    """Taught, from dense weights, of an uneven allocation and of another seed than its study, all at once."""
    where = ("--out", str(tmp_path), "--teachers", str(teachers))
    asked = [*SMALL, "teacher.name=good", "method.name=bottleneck", "budget.params=0.8", "budget.allocation=stage",
             "start.how=dense", "search.repeats=2", "search.trials=1", "train.attention_weight=60"]  # fmt: skip
    sets = [word for each in asked for word in ("--set", each)]
    first = studies.run("--space", "distill", *sets, *where, "--name", "first")
    assert first.returncode == 0, first.stdout + first.stderr
    was = next(trial for trial in studies.record(tmp_path / "first").trials.values() if trial.role is Role.REPEAT)
    assert was.specification.seed != was.specification.views.seed
    assert {"teacher", "allocation", "start"} <= was.specification.to_json().keys()
    for name, lost in (("kept", False), ("lost", True)):
        source = tmp_path / "first" / TRIALS_FOLDER / was.specification.start.fingerprint / CHECKPOINT_FILE
        if lost:
            source.unlink()
        done = studies.run("--reproduce", "first", was.trial_id[:6], *where, "--name", name)
        assert done.returncode == 0, done.stdout + done.stderr
        again = studies.record(tmp_path / name)
        assert len(again.trials) == 1 + lost
        now = again.trials[was.trial_id]
        assert now.specification == was.specification
        assert (now.val_error, now.test_error) == (was.val_error, was.test_error)
        assert "all 2 epochs that both have came out the same" in done.stdout
    resumed = studies.run("--resume", "lost", *where)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert len(studies.record(tmp_path / "lost").trials) == 2  # nothing is proposed beside it
