from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.sources.collate_studies import (
    StudySource,
    better_copy,
    collate,
    summary_lines,
    trial_events,
    write_study as write_collated,
)
from lowrank.data import DataSettings, load_data
from lowrank.errors import InputError
from lowrank.io.tensor_file import save_tensors
from lowrank.serving import IMAGES_FILE, MODEL_FILE
from sweeps.records.annotations import NoteKind, append_note, read_notes
from sweeps.records.events import Event, Status
from sweeps.records.header import StudyHeader
from sweeps.records.journal import Journal
from sweeps.records.load import load_study
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import CHECKPOINT_FILE, JOURNAL_FILE, MODELS_FOLDER, TRIALS_FOLDER
from sweeps.space.parse import read_space
from sweeps.trials.resolver import Resolver
from tests.support.journals import fold_events, make_plain
from tests.support.specifications import make_specification
from tests.support.synthetic_study import Plan, write_study

POINT = {"method.name": "tensor_train", "method.dims": 3, "train.weight_decay": 3e-4, "train.scaled_decay": True}


@pytest.fixture(scope="module")
def trained():
    """Real specifications with exact counts, of one space."""
    space = read_space("tt_dims", ["data.train_images=300", "network.width=0.25"])
    resolver = Resolver(space, load_data(DataSettings(name="digits", train_images=300)))
    return [resolver.resolve({**POINT, "budget.params": share}) for share in (0.2, 0.4, 0.6)]


def write(folder, trained, epochs, *, counts=None, test_error=None, worse=0.0):
    """A study of these trials, each with so many epochs on record; a completed one has 3. Weights lie beside it."""
    journal = Journal(folder / JOURNAL_FILE)
    journal.append(
        Event.STUDY, name=folder.name, question=f"of {folder.name}?", data={"name": "digits", "classes": 10},
        strata=[{"label": f"of {folder.name}", "params": 9}],
    )  # fmt: skip
    for each, last in zip(trained, epochs, strict=False):
        journal.append(
            Event.PROPOSED, trial=each.trial_id, role="search", stratum=each.stratum, parameters=each.point,
            specification=each.specification.to_json(), counts={**each.counts, **(counts or {})}, proposal={},
        )  # fmt: skip
        journal.append(Event.ATTEMPT, trial=each.trial_id, start_seconds=0.5, host=folder.name)
        for epoch in range(1, last + 1):
            journal.append(Event.EPOCH, trial=each.trial_id, epoch=epoch, metrics={"val_error": 10.0 - epoch + worse})
        if last == 3:
            journal.append(Event.FINISHED, trial=each.trial_id, status="completed", reason="")
            if test_error is not None:
                journal.append(Event.TESTED, trial=each.trial_id, test_error=test_error)
            path = folder / TRIALS_FOLDER / each.trial_id / CHECKPOINT_FILE
            save_tensors(path, {}, {"from": folder.name})
            model = folder / MODELS_FOLDER / each.trial_id
            model.mkdir(parents=True)
            for name in (MODEL_FILE, IMAGES_FILE):
                (model / name).write_text(folder.name)
    journal.close()
    return folder


class TestCollate:
    def test_the_longest_trained_copy_is_kept_once(self, tmp_path, trained, capsys):
        write(tmp_path / "one", trained, [3, 1, 2])
        write(tmp_path / "two", trained[:2], [2, 3], test_error=4.0)
        assert main(["collate", "one", "two", "--name", "all", "--studies", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert (
            f"{tmp_path}/all: 3 trials, 2 with weights, 2 with a model ready for use; 2 further copies dropped" in said
        )
        assert "not counted again" not in said
        found = load_study(tmp_path / "all")
        first, second, third = (found.trials[each.trial_id] for each in trained)
        assert [len(each.epochs) for each in (first, second, third)] == [3, 3, 2]
        assert [each.status for each in (first, second, third)] == [
            Status.COMPLETED, Status.COMPLETED, Status.RUNNING,
        ]  # fmt: skip
        assert [each.attempts[0]["host"] for each in (first, second, third)] == ["one", "two", "one"]
        assert second.test_error == 4.0
        assert found.header.question == "of one?"
        assert [entry.label for entry in found.header.strata] == ["of one", "of two"]
        weights = {path.parent.name for path in (tmp_path / "all").glob(f"{TRIALS_FOLDER}/*/{CHECKPOINT_FILE}")}
        assert weights == {trained[0].trial_id, trained[1].trial_id}
        for each, source in ((trained[0], "one"), (trained[1], "two")):
            model = tmp_path / "all" / MODELS_FOLDER / each.trial_id
            assert {path.name: path.read_text() for path in model.iterdir()} == {
                MODEL_FILE: source,
                IMAGES_FILE: source,
            }
        assert main(["report", "--study", "all", "--studies", str(tmp_path)]) == 0
        assert (
            main(["compare", "all", "one", "--studies", str(tmp_path), "--reference", "9e4,90", "--cost", "epochs"])
            == 0
        )

    def test_copies_that_disagree_are_named_the_widest_first(self, tmp_path, trained, capsys):
        """Neither a copy that was cut short nor one that agrees is named."""
        write(tmp_path / "one", trained, [3, 3, 3])
        write(tmp_path / "two", trained, [3, 3, 2], worse=0.25)
        write(tmp_path / "three", trained[1:2], [3], worse=0.5)
        assert main(["collate", "one", "two", "three", "--name", "all", "--studies", str(tmp_path)]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("copies disagree")]
        assert lines == [
            f"copies disagree: {trained[1].trial_id} has a validation error of 7.00 % in {tmp_path}/one (used), "
            f"7.25 % in {tmp_path}/two, 7.50 % in {tmp_path}/three",
            f"copies disagree: {trained[0].trial_id} has a validation error of 7.00 % in {tmp_path}/one (used), "
            f"7.25 % in {tmp_path}/two",
        ]

    def test_wrong_counts_are_left_out_and_said(self, tmp_path, trained, capsys):
        write(tmp_path / "one", trained[:1], [3])
        write(tmp_path / "two", trained[1:], [3], counts={"params": 5})
        assert main(["collate", "one", "two", "--name", "all", "--studies", str(tmp_path)]) == 1
        expected = f"{trained[1].trial_id} of {tmp_path}/two: 5 params on record, but its specification has"
        assert expected in capsys.readouterr().out
        assert set(load_study(tmp_path / "all").trials) == {trained[0].trial_id}

    def test_what_could_not_be_counted_again_is_said(self, tmp_path, trained, capsys):
        write(tmp_path / "one", trained[:1], [3])
        for name, text in (("two", '"name":"digits"'), ("three", '"specification":')):
            folder = write(tmp_path / name, trained[1:], [3, 3])
            lines = make_plain(folder / JOURNAL_FILE)
            other = '"specification":{},"as":' if name == "three" else '"name":"folder:/mine"'
            (folder / JOURNAL_FILE).write_text(lines.replace(text, other))
        assert main(["collate", "one", "two", "three", "--name", "all", "--studies", str(tmp_path)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert [line for line in said if line.startswith("not counted again")] == [
            f"not counted again: 2 trials of {tmp_path}/two: the shape of the images of folder:/mine is not on record",
            f"not counted again: 2 trials of {tmp_path}/three: no specification on record",
        ]

    def test_of_equal_copies_one_with_weights_is_kept(self, tmp_path, trained):
        for name in ("one", "two"):
            write(tmp_path / name, trained[:1], [3])
        shutil.rmtree(tmp_path / "one" / TRIALS_FOLDER)
        shutil.rmtree(tmp_path / "one" / MODELS_FOLDER)
        assert main(["collate", "one", "two", "--name", "all", "--studies", str(tmp_path)]) == 0
        assert load_study(tmp_path / "all").trials[trained[0].trial_id].attempts[0]["host"] == "two"
        assert (tmp_path / "all" / TRIALS_FOLDER / trained[0].trial_id / CHECKPOINT_FILE).is_file()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, from within MLflow
    def test_a_tracking_store_is_a_source(self, tmp_path, trained):
        from sweeps.tracking.follower import Follower, catch_up

        folder = write(tmp_path / "one", trained[:2], [3, 3])
        other = write(tmp_path / "two", trained[2:], [3])
        uri = f"sqlite:///{other}/mlflow.db"
        assert catch_up(Follower(other, uri)) is None
        asked = ["--from-store", uri, "two", "--name", "all", "--studies", str(tmp_path)]
        assert main(["collate", str(folder), *asked]) == 0
        assert set(load_study(tmp_path / "all").trials) == {each.trial_id for each in trained}

    def test_other_data_do_not_mix(self, tmp_path):
        for name, print_ in (("one", "f00d"), ("two", "beef")):
            folder = write_study(tmp_path / name, Plan(name=name, trials=2, epochs=2))
            text = make_plain(folder / JOURNAL_FILE).replace("f00d", print_)
            (folder / JOURNAL_FILE).write_text(text)
        sources = [StudySource(label=n, study=load_study(tmp_path / n), folder=None) for n in ("one", "two")]
        with pytest.raises(InputError, match=r"must share data and split, but got one \(digits, f00d\); two"):
            collate(sources, "all")

    def test_a_study_does_not_join_itself(self, tmp_path, capsys):
        write_study(tmp_path / "one", Plan(name="one", trials=2, epochs=2))
        assert main(["collate", "one", "one", "--name", "all", "--studies", str(tmp_path)]) == 2
        assert "each study must be named once" in capsys.readouterr().err
        assert not (tmp_path / "all").exists()

    def test_a_folder_that_is_there_is_not_touched(self, tmp_path, capsys):
        for name in ("one", "two"):
            write_study(tmp_path / name, Plan(name=name, trials=2, epochs=2))
        assert main(["collate", "one", "two", "--name", "one", "--studies", str(tmp_path)]) == 2
        assert "is a study already; give another --name" in capsys.readouterr().err


def test_events_fold_into_the_same_trials(tmp_path):
    made = load_study(write_study(tmp_path, Plan(trials=20)))
    for each in made.trials.values():
        again = [{"event": str(event), **fields} for event, fields in trial_events(each)]
        found = fold_events(json.loads(json.dumps(again))).trials[each.trial_id]
        assert (found.status, found.epochs, found.counts, found.reason) == (
            each.status, each.epochs, each.counts, each.reason,
        )  # fmt: skip
        assert len(found.attempts) == len(each.attempts)


def test_marks_notes_and_points_come_with_a_trial():
    marked = TrialRecord(
        trial_id="a", status=Status.COMPLETED, specification=make_specification(), point_id="p", broken="a wrong split",
        notes=["first", "second\nline"], tags={"team": "vision"}, notices=["cache built"], finished_at=5.0,
        test_error=50.0, wrong_images={"val": "2:val", "test": "2:test"},
    )  # fmt: skip
    again = [{"event": str(event), **fields} for event, fields in trial_events(marked)]
    found = fold_events(json.loads(json.dumps(again))).trials["a"]
    for name in ("point_id", "broken", "notes", "tags", "notices", "test_error", "wrong_images"):
        assert getattr(found, name) == getattr(marked, name), name


def test_a_sound_copy_goes_before_a_longer_broken_one():
    epochs = {1: {"val_error": 1.0}, 2: {"val_error": 1.0}}
    broken = TrialRecord(trial_id="a", status=Status.COMPLETED, epochs=epochs, broken="why", notes=["seen"])
    sound = TrialRecord(trial_id="a", status=Status.STOPPED, epochs={1: {"val_error": 2.0}})
    sources = [StudySource(label=name, study=StudyRecord(header=StudyHeader(name=name)), folder=None) for name in "xy"]
    kept, source = better_copy((broken, sources[0]), (sound, sources[1]))
    assert (kept.broken, kept.notes, source.label) == ("", ["seen"], "y")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adopted": {"study": "x"}}, 77.0),
        ({}, None),  # trained elsewhere: other weights
        ({"adopted": {"study": "x"}, "broken": "disk was full"}, None),
        ({"adopted": {"study": "z"}}, None),  # by a third study, with weights of its own
        ({"attempts": [{"host": "a", "pid": 1}]}, 77.0),  # one study read twice
    ],
)
def test_a_test_error_comes_from_a_sound_copy_of_the_same_weights_only(changes, expected):
    trial = TrialRecord(
        trial_id="a", status=Status.COMPLETED, epochs={1: {"val_error": 3.0}}, attempts=[{"host": "a", "pid": 1}],
        wrong_images={"val": "val"},
    )  # fmt: skip
    tested = replace(trial, test_error=77.0, wrong_images={"val": "val", "test": "bits"}, attempts=[{"host": "b"}])
    tested = replace(tested, **changes)
    sources = [StudySource(label=name, study=StudyRecord(header=StudyHeader(name=name)), folder=None) for name in "xy"]
    chosen, _ = better_copy((trial, sources[0]), (tested, sources[1]))
    assert chosen.test_error == expected
    assert chosen.wrong_images.get("test") == (None if expected is None else "bits")


def test_copies_of_other_number_formats_are_named():
    """On a GPU `precision: auto` is bfloat16, on a CPU float32: one id, two computations."""

    def copy(name: str, device: str, **attempt: str) -> StudySource:
        trial = TrialRecord(
            trial_id="a", status=Status.COMPLETED, epochs={1: {"val_error": 3.0}},
            specification=make_specification(), attempts=[{"device": device, **attempt}],
        )  # fmt: skip
        study = StudyRecord(header=StudyHeader(name=name), trials={"a": trial})
        return StudySource(label=name, study=study, folder=None)

    for other, expected in (
        (copy("y", "cuda"), ("1 trial: float32 in x (used), bfloat16 in y",)),
        (copy("y", "cuda", precision="float32"), ()),
        (copy("y", "cpu"), ()),
    ):
        collated = collate([copy("x", "cpu"), other], "all")
        assert collated.unlike == expected
        lines = summary_lines(collated, [copy("x", "cpu"), other], Path("all"))
        assert [line for line in lines if "other number formats" in line] == [
            f"copies of other number formats: {line}" for line in expected
        ]


def test_notes_beside_the_studies_come_with_them(tmp_path):
    sources, notes = [], []
    for number, name in enumerate("xy"):
        folder = write_study(tmp_path / name, Plan(name=name, trials=2, seed=number))
        notes.append(append_note(folder, NoteKind.TODO, f"of {name}"))
        sources.append(StudySource(label=name, study=load_study(folder), folder=folder))
    write_collated(collate(sources, "all"), tmp_path / "all")
    assert read_notes(tmp_path / "all") == notes
