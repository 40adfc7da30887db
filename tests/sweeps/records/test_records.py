"""Records folded from events, and the tables that give them back."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank.errors import InputError
from sweeps.records import model as records
from sweeps.records.events import TERMINAL, Event, Role, Status
from sweeps.records.journal import Journal
from sweeps.records.load import StudyHistory
from sweeps.records.model import StudyRecord, apply_event
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, RESULTS_FILE
from sweeps.records.tables import (
    EPOCHS_SCHEMA,
    RESULTS_SCHEMA,
    epochs_to_table,
    metrics_from_row,
    read_tables,
    results_to_table,
    study_fields,
    study_from_fields,
    write_tables,
)
from tests.support.journals import fold_events, read_events
from tests.support.specifications import plain_specification
from tests.support.synthetic_study import Plan, write_study

PROPOSED = {
    "event": "proposed", "time": 1.0, "trial": "t", "role": "search", "stratum": "s", "parameters": {"dims": 3},
    "specification": plain_specification(method={"name": "cp", "dims": 3}), "counts": {"params": 5},
    "proposal": {"number": 1},
}  # fmt: skip


@pytest.fixture
def events(tmp_path):
    return list(read_events(write_study(tmp_path, Plan(trials=16)) / JOURNAL_FILE))


def epoch(number, error, time=2.0):
    return {"event": "epoch", "time": time, "trial": "t", "epoch": number, "metrics": {"val_error": error}}


def test_repeating_events_changes_nothing(events):
    once = fold_events(events)
    dice = random.Random(0)
    repeated = [event for event in events for _ in range(dice.randint(1, 3))]
    assert fold_events(repeated) == once
    ending = fold_events([*events, *events])
    assert ending == once


def test_folding_in_two_parts_equals_folding_at_once(events):
    study = fold_events(events[:40])
    for event in events[40:]:
        apply_event(study, event)
    assert study == fold_events(events)


def test_every_status_is_reached(events):
    found = {trial.status for trial in fold_events(events).trials.values()}
    assert found == TERMINAL


def test_a_trial_is_running_from_its_first_attempt():
    assert fold_events([PROPOSED]).trials["t"].status is Status.PROPOSED
    attempt = {"event": "attempt", "time": 2.0, "trial": "t", "start_seconds": 0.5}
    assert fold_events([PROPOSED, attempt]).trials["t"].status is Status.RUNNING


def test_an_attempt_after_the_end_does_not_reopen_a_trial():
    end = {"event": "finished", "time": 3.0, "trial": "t", "status": "completed"}
    attempt = {"event": "attempt", "time": 4.0, "trial": "t"}
    assert fold_events([PROPOSED, end, attempt]).trials["t"].status is Status.COMPLETED


def test_the_error_of_a_trial_is_that_of_its_last_epoch():
    trial = fold_events([PROPOSED, epoch(1, 5.0), epoch(3, 9.0), epoch(2, 4.0)]).trials["t"]
    assert trial.last_epoch == 3
    assert trial.val_error == 9.0


def test_an_epoch_trained_again_counts_once_with_its_new_value():
    trial = fold_events([PROPOSED, epoch(1, 5.0), epoch(1, 6.0, time=9.0)]).trials["t"]
    assert trial.epochs == {1: {"val_error": 6.0, "time": 9.0}}


def test_aliases_are_kept_once():
    alias = {"event": "alias", "time": 2.0, "trial": "t", "parameters": {"dims": 4}}
    assert fold_events([PROPOSED, alias, alias]).trials["t"].aliases == [{"dims": 4}]


def test_a_resumed_study_is_open_again():
    study = {"event": "study", "time": 1.0, "name": "a"}
    closed = {"event": "closed", "time": 2.0, "reason": "interrupted"}
    assert fold_events([study, closed]).closed == closed
    resumed = fold_events([study, closed, {**study, "time": 3.0}])
    assert resumed.closed is None
    assert resumed.header.time == 3.0


def test_an_unknown_event_is_an_error():
    with pytest.raises(ValueError, match="'tea' is not a valid Event"):
        fold_events([{"event": "tea", "time": 1.0}])


def test_every_event_has_a_rule():
    assert set(Event) == {Event.STUDY, Event.RESOURCES, Event.PACKING, Event.CLOSED, Event.EPOCH} | set(records._APPLY)


def test_tables_of_incomplete_records_have_their_schema(events):
    study = fold_events(events)
    table = results_to_table(study)
    assert table.schema == RESULTS_SCHEMA
    assert table.num_rows == len(study.trials)
    assert results_to_table(StudyRecord()).schema == RESULTS_SCHEMA
    assert epochs_to_table(StudyRecord()).schema == EPOCHS_SCHEMA
    assert results_to_table(fold_events([PROPOSED])).num_rows == 1


def test_rows_equal_the_records(events):
    study = fold_events(events)
    for row, trial in zip(results_to_table(study).to_pylist(), study.trials.values(), strict=True):
        assert row["trial_id"] == trial.trial_id
        assert row["study"] == "tt_dims"
        assert row["epochs"] == trial.last_epoch
        assert row["val_error"] == trial.val_error
        assert row["attempts"] == len(trial.attempts)
        assert Role(row["role"]) is trial.role
        assert json.loads(row["specification"]) == (trial.specification.to_json() if trial.specification else {})
        assert row["train_seconds"] == pytest.approx(1.25 * len(trial.epochs))


def test_the_epochs_table_has_every_epoch_once(events):
    study = fold_events(events)
    table = epochs_to_table(study)
    assert table.num_rows == sum(len(trial.epochs) for trial in study.trials.values())
    pairs = set(zip(table["trial_id"].to_pylist(), table["epoch"].to_pylist(), strict=True))
    assert len(pairs) == table.num_rows
    assert pa.compute.min(table["epoch"]).as_py() == 1


def test_a_row_of_an_epoch_has_every_metric():
    metrics = {"time": 2.0, "val_error": 5.0, "loss_kd": 0.5, "grad_norm.stage1": 0.25, "grad_norm.head": 0.5}
    study = fold_events([PROPOSED, {**epoch(1, 5.0), "metrics": {k: v for k, v in metrics.items() if k != "time"}}])
    (row,) = epochs_to_table(study).to_pylist()
    assert dict(row["by_stage"]) == {"grad_norm.stage1": 0.25, "grad_norm.head": 0.5}
    assert row["loss_attention"] is None
    assert metrics_from_row(row) == metrics


def test_a_study_keeps_its_names_on_disk(events):
    study = fold_events(events)
    stored = study_fields(study)
    names = {"header", "closed", "placement", "sittings", "notes", "tags", "test_looks", "finished_ends"}
    assert set(stored) == names
    assert study_from_fields(stored, study.trials) == study


def test_the_test_errors_of_one_run_are_one_look():
    def run(time):
        return {"event": "study", "time": time, "name": "a"}

    def tested(trial, time):
        return {"event": "tested", "time": time, "trial": trial, "test_error": 5.0}

    events = [run(1.0), PROPOSED, tested("t", 2.0), tested("u", 2.5), run(3.0), run(4.0), tested("v", 5.0)]
    for study in (fold_events(events), fold_events([*events, *events])):
        assert [look["trials"] for look in study.test_looks] == [["t", "u"], ["v"]]


def test_only_finished_ends_are_counted_as_such():
    ends = [{"event": "closed", "time": float(n), "reason": why} for n, why in enumerate(["interrupted", "finished"])]
    study = fold_events([{"event": "study", "time": 0.5, "name": "a"}, *ends, *ends])
    assert study.finished_ends == [1.0]


def test_tables_that_could_not_be_written_leave_the_old_ones(events, tmp_path, monkeypatch):
    study = fold_events(events)
    write_tables(study, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    before = read_tables(tmp_path)

    def fail_halfway(table, path):
        path.write_bytes(b"PAR1")
        raise OSError("the disk is full")

    monkeypatch.setattr(pq, "write_table", fail_halfway)
    with pytest.raises(OSError, match="the disk is full"):
        write_tables(fold_events([PROPOSED]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert read_tables(tmp_path) == before


def test_a_reader_between_the_two_tables_waits_for_both_of_one_writing(events, tmp_path, monkeypatch):
    study, old = fold_events(events), fold_events([PROPOSED])
    new = tmp_path / "new"
    new.mkdir()
    write_tables(old, tmp_path)
    write_tables(study, new)
    (new / EPOCHS_FILE).replace(tmp_path / EPOCHS_FILE)  # here a writer has replaced one of them

    def replace_the_other(seconds):
        (new / RESULTS_FILE).replace(tmp_path / RESULTS_FILE)

    monkeypatch.setattr("time.sleep", replace_the_other)
    assert read_tables(tmp_path).trials.keys() == study.trials.keys()


def test_tables_that_were_not_written_together_are_one_line(events, tmp_path, monkeypatch):
    write_tables(fold_events([PROPOSED]), tmp_path)
    results = (tmp_path / RESULTS_FILE).read_bytes()
    write_tables(fold_events(events), tmp_path)
    (tmp_path / RESULTS_FILE).write_bytes(results)
    monkeypatch.setattr("sweeps.records.tables.READ_SECONDS", 0.0)
    with pytest.raises(
        InputError, match=r"results.parquet and epochs.parquet of .* were not written together: try again"
    ):
        read_tables(tmp_path)


def test_tables_hold_why_a_trial_was_postponed(tmp_path):
    postponed = {"event": "postponed", "time": 2.0, "trial": PROPOSED["trial"], "reason": "on 1 CPU: out of memory"}
    write_tables(fold_events([PROPOSED, postponed]), tmp_path)
    (trial,) = read_tables(tmp_path).trials.values()
    assert trial.postponed == "on 1 CPU: out of memory"


def test_a_history_reads_each_line_once_and_begins_anew_with_a_repaired_journal(tmp_path, monkeypatch):
    path, folded = tmp_path / JOURNAL_FILE, []
    monkeypatch.setattr("sweeps.records.load.apply_event", lambda record, event: folded.append(event["text"]))
    journal, history = Journal(path), StudyHistory(path)
    for text in ("a", "b"):
        journal.append(Event.NOTICE, trial="t", text=text)
        history.update()
    assert folded == ["a", "b"]
    journal.append(Event.NOTICE, trial="t", text="c")
    journal.close()
    history.update()
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    history.update()
    assert folded == ["a", "b", "c", "a"]
