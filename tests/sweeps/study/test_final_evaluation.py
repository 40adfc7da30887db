"""Looks at the test split: when one is taken, at whom, and how often the user is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lowrank.data import DataSettings, ImageData, load_data
from lowrank.errors import LoaderHungError
from lowrank.io import save_tensors
from lowrank.serving import load_classifier
from sweeps.records.events import Event, Role, Status
from sweeps.records.fronts import front_trials
from sweeps.records.image_errors import decode_wrong_images
from sweeps.records.journal import Journal
from sweeps.records.load import load_study
from sweeps.records.model import TrialRecord, apply_event
from sweeps.records.names import MODELS_FOLDER
from sweeps.search.reuse import SiblingResults, weights_path
from sweeps.study import driver, final_evaluation
from sweeps.study.driver import CloseReason, RunEnd
from sweeps.study.final_evaluation import evaluate_front, restore_trainer, write_model
from sweeps.trials import make_trainer
from tests.support.specifications import make_specification
from tests.support.synthetic_study import Plan, write_study


class FakeSearch:
    """The part of a search that writes test errors, over the records of a synthetic study."""

    def __init__(self, folder):
        self.record = load_study(folder)
        self.siblings = SiblingResults()
        self.resolver = SimpleNamespace(data=None)
        self.journal = Journal(folder / "journal.jsonl")

    def write_test_error(self, trial_id, error, wrong_images=""):
        event = self.journal.append(Event.TESTED, trial=trial_id, test_error=error, wrong_images=wrong_images)
        apply_event(self.record, event)

    def write_notice(self, trial_id, text):
        apply_event(self.record, self.journal.append(Event.NOTICE, trial=trial_id, text=text))

    def append(self, event, **fields):
        apply_event(self.record, self.journal.append(event, **fields))


@pytest.fixture
def search(tmp_path):
    search = FakeSearch(write_study(tmp_path, Plan(trials=8, closed=None)))
    yield search
    search.journal.close()


@pytest.fixture
def evaluated(monkeypatch):
    """The ids of the trials whose network was evaluated on the test split, each time that one was."""
    evaluations = []

    def restore(trial, *_):
        def evaluate(split):
            evaluations.append(trial.trial_id)
            return {"error": 25.0}

        wrong = torch.tensor([1, 0, 0, 0], dtype=torch.uint8)
        return SimpleNamespace(evaluate=evaluate, wrong_images={"test": wrong})

    monkeypatch.setattr(final_evaluation, "restore_trainer", restore)
    monkeypatch.setattr(final_evaluation, "write_model", lambda *_: None)
    return evaluations


def test_each_trial_is_looked_at_once_and_the_looks_are_counted(search, tmp_path, evaluated):
    assert evaluate_front(search, tmp_path, None) == []
    first = list(evaluated)
    assert len(first) == len(set(first)) > 2
    assert [look["trials"] for look in search.record.test_looks] == [first]
    for trial_id in first:
        assert decode_wrong_images(search.record.trials[trial_id].wrong_images["test"]).tolist() == [True] + 3 * [False]
    evaluate_front(search, tmp_path, None)
    assert evaluated == first


def test_without_a_look_nobody_is_evaluated_and_the_command_for_one_is_named(search, tmp_path, evaluated):
    (line,) = evaluate_front(search, tmp_path, None, look=False)
    assert evaluated == []
    assert line.endswith(
        f"which is counted: python sweeps/run.py --resume {tmp_path.name} --out {tmp_path.parent} --test"
    )


@pytest.mark.parametrize(
    ("earlier_ends", "test", "expected"),
    [([], False, True), (["interrupted"], False, True), (["finished"], False, False), (["finished"], True, True),
     (["finished", "interrupted"], False, False)],
)  # fmt: skip
def test_the_first_finished_end_looks_and_later_ones_are_asked(search, monkeypatch, earlier_ends, test, expected):
    for number, reason in enumerate(earlier_ends):
        search.append(Event.CLOSED, reason=reason)
        search.append(Event.STUDY, name="a", number=number)
    looks = []
    monkeypatch.setattr(driver, "_train", lambda *_: CloseReason.FINISHED)
    monkeypatch.setattr(driver, "_print_summary", lambda *_: "")
    monkeypatch.setattr(driver, "evaluate_front", lambda *_, look: looks.append(look) or [])
    end = RunEnd()
    driver._search(search, SimpleNamespace(test=test, folder=None), None, 8, lambda: None, end)
    assert end == RunEnd(CloseReason.FINISHED, "")
    assert looks == [expected]


@pytest.mark.parametrize(
    ("error", "tested"),
    [(torch.OutOfMemoryError("CUDA out of memory.\nmore"), 1), (LoaderHungError("no image came for 120 s"), 0)],
)
def test_what_cannot_be_evaluated_is_skipped_with_a_line_and_a_notice(
    search, tmp_path, monkeypatch, capsys, error, tested
):
    """Memory may suffice for a smaller network; images that cannot be read are not asked for again."""
    first, *others = [trial.trial_id for trial in front_trials(search.record.trials.values())]
    evaluations = []

    def restore(trial, *_):
        def evaluate(split):
            evaluations.append(trial.trial_id)
            if trial.trial_id == first:
                raise error
            return {"error": 25.0}

        return SimpleNamespace(evaluate=evaluate, wrong_images={"test": torch.zeros(4, dtype=torch.uint8)})

    monkeypatch.setattr(final_evaluation, "restore_trainer", restore)
    monkeypatch.setattr(final_evaluation, "write_model", lambda *_: None)
    (line,) = evaluate_front(search, tmp_path, None)
    reason = str(error).splitlines()[0]
    assert f"{first} is not evaluated on the test split and not written as a model: {reason}" in capsys.readouterr().out
    assert search.record.trials[first].notices[-1].endswith(reason)
    assert evaluations == [first, *others[: len(others) * tested]]
    assert line.endswith(f"--resume {tmp_path.name} --out {tmp_path.parent} --test")


def test_an_error_of_the_code_is_not_taken_for_a_lack_of_memory(search, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(final_evaluation, "restore_trainer", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        evaluate_front(search, tmp_path, None)


def test_a_look_before_the_end_is_refused_with_a_line(search, monkeypatch, capsys):
    monkeypatch.setattr(driver, "_train", lambda *_: CloseReason.TIME)
    monkeypatch.setattr(driver, "_print_summary", lambda *_: "")
    driver._search(search, SimpleNamespace(test=True, folder=None), None, 8, lambda: None, RunEnd())
    assert "the search has not ended: the test split was not looked at" in capsys.readouterr().out


def test_a_study_in_which_nothing_completes_says_how_its_trials_ended(search, tmp_path, monkeypatch, capsys):
    trials = search.record.trials
    search.record.trials = {key: trials[key] for key in trials if trials[key].status is Status.DIVERGED}
    monkeypatch.setattr(driver, "_train", lambda *_: CloseReason.FINISHED)
    end = RunEnd()
    driver._search(search, SimpleNamespace(test=False, folder=tmp_path), None, 8, lambda: None, end)
    assert capsys.readouterr().out == (
        "1 diverged: loss is NaN in epoch 2\n"
        "no trial was completed, so there is no front\n"
        "where the training diverged, a lower rate may help: --set train.lr=...\n"
    )
    assert end == RunEnd(CloseReason.FINISHED, "")
    assert driver.exit_code(search.record, end.reason) == 1


def only_trial(search: FakeSearch, folder: Path, role: Role = Role.SEARCH) -> tuple[ImageData, TrialRecord, Path]:
    """Leave one completed trial in the record, with weights; returns the images, the trial and its weights' file."""
    data = load_data(DataSettings(name="digits", train_images=200))
    completed = [trial for trial in search.record.trials.values() if trial.status is Status.COMPLETED]
    trial = next(trial for trial in completed if trial.role is role)
    trial.specification = make_specification(network={"name": "resnet9", "width": 0.125})
    search.record.trials = {trial.trial_id: trial}
    path = weights_path(folder, trial.trial_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, make_trainer(trial.specification, data, "cpu").weights(), {})
    return data, trial, path


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7] + b"changed"), "is damaged: its tensors do not have"),
        (lambda path: path.write_bytes(b""), "is damaged: "),
        (Path.unlink, "its weights are not there"),
        (lambda path: (path.unlink(), path.mkdir()), "its weights cannot be read: "),
        (lambda path: save_tensors(path, {"other": torch.zeros(1)}, {}), "this version of the code cannot use"),
    ],
    ids=["changed", "empty", "missing", "folder", "other"],
)
def test_weights_of_the_front_that_cannot_be_used_are_called_what_they_are(search, tmp_path, capsys, harm, message):
    data, trial, path = only_trial(search, tmp_path)
    harm(path)
    evaluate_front(search, tmp_path, data)
    assert message in capsys.readouterr().out
    assert trial.test_error is None
    assert [text for text in trial.notices if message in text and text.startswith("not evaluated on the test split")]


@pytest.mark.parametrize("role", [Role.SEARCH, Role.REFERENCE])
def test_a_network_of_the_front_or_a_reference_is_tested_and_written_as_a_model_that_needs_no_study(
    search, tmp_path, role
):
    data, trial, path = only_trial(search, tmp_path, role)
    assert evaluate_front(search, tmp_path, data) == []
    trainer = restore_trainer(trial, path, data, "cpu")
    assert trial.test_error == trainer.evaluate("test")["error"]
    trainer.evaluate("val")
    classifier = load_classifier(tmp_path / MODELS_FOLDER / trial.trial_id)
    predicted = classifier.predict(data.val.images.permute(0, 3, 1, 2).numpy()).argmax(1)
    wrong = predicted != data.val.labels.numpy()
    assert wrong.tolist() == trainer.wrong_images["val"].bool().tolist()
    path.unlink()  # there is nothing left to do for which the weights would be needed
    assert evaluate_front(search, tmp_path, data) == []


def test_a_network_that_is_not_the_trials_is_not_written_and_a_line_says_so(search, tmp_path, capsys):
    data, trial, path = only_trial(search, tmp_path)
    trainer = restore_trainer(trial, path, data, "cpu")
    trial.specification = make_specification(network={"name": "resnet9", "width": 0.25})
    write_model(tmp_path / MODELS_FOLDER / "x", trial, trainer, data)
    assert capsys.readouterr().out.startswith(f"{trial.trial_id} is not written as a model: ")
    assert not (tmp_path / MODELS_FOLDER / "x").exists()
