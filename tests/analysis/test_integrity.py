"""Damage in the files of a study is named by file, line and byte; a repair keeps all that is whole."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from analysis.__main__ import main
from analysis.sources.integrity import repair_study
from lowrank.errors import InputError
from lowrank.io import save_tensors
from sweeps.records import (
    CHECKPOINT_FILE,
    JOURNAL_FILE,
    NOTES_FILE,
    OPTUNA_FILE,
    RANK_COSTS_FILE,
    RESULTS_FILE,
    SPACE_FILE,
    STEP_TIMES_FILE,
    TRIALS_FOLDER,
    NoteKind,
    append_note,
    load_study,
    locked_journal,
    read_notes,
    read_rank_costs,
    read_step_times,
    write_space_file,
    write_tables,
)
from sweeps.space import StoredOptions
from tests.support.synthetic_study import Plan, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "a study", Plan(trials=4, epochs=3))


def lines_of(study: Path) -> list[bytes]:
    return (study / JOURNAL_FILE).read_bytes().splitlines(keepends=True)


def write_lines(study: Path, lines: list[bytes]) -> None:
    (study / JOURNAL_FILE).write_bytes(b"".join(lines))


def index_of(study: Path, event: str, number: int = 0) -> int:
    """Index of the line of the `number`-th event of a kind."""
    return [index for index, line in enumerate(lines_of(study)) if json.loads(line)["event"] == event][number]


def change_digit(study: Path, event: str, number: int = 0) -> tuple[int, int]:
    """Change a digit in such a line; returns the line's number and the byte at which it begins."""
    lines, index = lines_of(study), index_of(study, event, number)
    line = lines[index].replace(b'"time":1', b'"time":2')
    assert line != lines[index]
    lines[index] = line
    write_lines(study, lines)
    return index + 1, sum(map(len, lines[:index]))


def run(command: str, study: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main([command, str(study)])
    printed = capsys.readouterr()
    assert printed.err == ""
    return code, printed.out.splitlines()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_study_is_said_to_be_whole_and_stays_as_it_is(study, capsys):
    before = content(study)
    assert run("check", study, capsys) == (0, [f"{study}: every file is whole"])
    assert content(study) == before
    assert run("repair", study, capsys) == (0, [f"{study}: nothing to repair"])
    assert {name: data for name, data in content(study).items() if name != "driver.lock"} == before


def test_every_damage_is_listed_and_nothing_is_changed(study, capsys):
    number, byte = change_digit(study, "epoch", 2)
    second, second_byte = change_digit(study, "finished")
    (study / OPTUNA_FILE).write_text('{"op_code": 0}\n{"op_co\n')
    (study / STEP_TIMES_FILE).write_text("{")
    checkpoint = study / TRIALS_FOLDER / "x" / CHECKPOINT_FILE
    checkpoint.parent.mkdir(parents=True)
    save_tensors(checkpoint, {"weight": torch.zeros(4)}, {})
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"\x01")
    before = content(study)
    code, printed = run("check", study, capsys)
    assert code == 1
    assert content(study) == before
    assert printed[:2] == [
        f"{JOURNAL_FILE}: line {line} at byte {start}: its checksum does not fit its content"
        for line, start in ((number, byte), (second, second_byte))
    ]
    assert printed[2].startswith(f"{OPTUNA_FILE}: line 2 at byte 15 is damaged: ")
    assert printed[3].startswith(f"{STEP_TIMES_FILE}: ")
    assert printed[4].startswith(f"{TRIALS_FOLDER}/x/{CHECKPOINT_FILE}: is damaged: its tensors do not have")
    assert printed[5] == f"python -m analysis repair '{study}' keeps all that is whole"


def test_a_repair_keeps_all_other_lines_and_says_what_is_left_out(study, capsys):
    write_tables(load_study(study), study)
    events = [json.loads(line)["event"] for line in lines_of(study)]
    number, byte = change_digit(study, "epoch", 2)
    damaged = (study / JOURNAL_FILE).read_bytes()
    with pytest.raises(InputError, match=f"line {number} at byte {byte} is damaged: .* repair '.*'` keeps what"):
        load_study(study)
    code, printed = run("repair", study, capsys)
    assert code == 0
    assert printed == [
        f"left out: {JOURNAL_FILE}: line {number} at byte {byte}: its checksum does not fit its content",
        f"{JOURNAL_FILE}: {len(events) - 1} lines kept, 1 left out; the old file is {JOURNAL_FILE}.damaged",
        f"{RESULTS_FILE} and epochs.parquet: written again from the journal",
    ]
    del events[number - 1]
    assert [json.loads(line)["event"] for line in lines_of(study)] == events
    assert (study / f"{JOURNAL_FILE}.damaged").read_bytes() == damaged
    assert run("check", study, capsys)[0] == 0
    assert sum(len(trial.epochs) for trial in load_study(study).trials.values()) == Counter(events)["epoch"]


def test_a_repair_of_a_stored_study_says_which_copy_is_where(study, capsys):
    options = StoredOptions(space="a", data_dir=None, tracking_uri=None, storage="s3://bucket/studies")
    write_space_file(study, {}, options)
    change_digit(study, "epoch")
    code, lines = run("repair", study, capsys)
    assert code == 0
    (line,) = [line for line in lines if "s3://" in line]
    assert line.startswith("s3://bucket/studies holds the journal as it was stored: to go on with that one, move ")
    assert line.endswith("to go on with the repaired one, --resume it with another --storage")


def test_lost_and_doubled_lines_are_repaired(study, capsys):
    lines, epoch = lines_of(study), index_of(study, "epoch")
    write_lines(study, [*lines[:epoch], *lines[epoch + 2 : -2], lines[-3], *lines[-2:]])
    code, printed = run("check", study, capsys)
    assert code == 1
    assert "2 lines before it are lost" in printed[0]
    assert "which has been read: it is there twice" in printed[1]
    assert run("repair", study, capsys)[0] == 0
    assert run("check", study, capsys)[0] == 0
    assert len(lines_of(study)) == len(lines) - 2


def test_a_trial_whose_proposal_is_lost_is_left_out_whole(study, capsys):
    index = index_of(study, "proposed", 1)
    trial = json.loads(lines_of(study)[index])["trial"]
    trials = set(load_study(study).trials)
    lines = lines_of(study)
    count = sum(json.loads(line).get("trial") == trial for line in lines) - 1
    write_lines(study, [*lines[:index], *lines[index + 1 :]])
    _, printed = run("repair", study, capsys)
    assert f"left out: {JOURNAL_FILE}: the proposal of trial {trial} is lost, so {count} more lines of it" in str(
        printed
    )
    assert set(load_study(study).trials) == trials - {trial}
    assert run("check", study, capsys)[0] == 0


def test_a_journal_without_its_first_line_is_not_repaired(study, capsys):
    write_lines(study, lines_of(study)[1:])
    before = (study / JOURNAL_FILE).read_bytes()
    assert main(["repair", str(study)]) == 2
    assert "cannot be repaired: no whole line says which study it is" in capsys.readouterr().err
    assert (study / JOURNAL_FILE).read_bytes() == before


def test_a_running_study_is_not_repaired(study, capsys):
    with locked_journal(study):
        assert main(["repair", str(study)]) == 2
    assert "is being run by another process" in capsys.readouterr().err


def test_a_journal_of_a_newer_version_is_neither_damaged_nor_repaired(study, capsys, monkeypatch):
    before = (study / JOURNAL_FILE).read_bytes()
    monkeypatch.setattr("sweeps.records.journal.RECORD_VERSION", 0)
    for command in ("check", "repair", "summary"):
        assert main([command, str(study)]) == 2
        error = capsys.readouterr().err
        assert "a newer version of this project wrote it" in error
        assert error.count("\n") == 1
    assert (study / JOURNAL_FILE).read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "fast"}', '{"a": -1}', "\x00"])
def test_damaged_step_times_are_one_line_and_set_aside(study, text, capsys):
    (study / STEP_TIMES_FILE).write_text(text)
    with pytest.raises(
        InputError, match=r"step_times.json is damaged \(.*\); `python -m analysis repair '.*'` sets it"
    ):
        read_step_times(study / STEP_TIMES_FILE)
    code, printed = run("repair", study, capsys)
    assert code == 0
    assert printed == [f"{STEP_TIMES_FILE}: set aside as {STEP_TIMES_FILE}.damaged; --resume measures the steps again"]
    assert (study / f"{STEP_TIMES_FILE}.damaged").read_text() == text


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"a": 1}', '{"a": {"stage1": 1}}', '{"a": {"stage1": [{"method": null}]}}',
     '{"a": {"stage1": [{"method": {}, "costs": [1, 2], "error": 0.5, "missed": 0.5}]}}',
     '{"a": {"stage1": [{"method": null, "costs": [1], "error": 0.5, "missed": 0.5}]}}'],
)  # fmt: skip
def test_damaged_costs_of_ranks_are_one_line_and_set_aside(study, text, capsys):
    path = study / RANK_COSTS_FILE
    path.write_text('{"a": {"stage1": [{"method": null, "costs": [1, 2], "error": 0.5, "missed": 0.5}]}}')
    assert run("check", study, capsys)[0] == 0
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"rank_costs.json is damaged \(.*\); `python -m analysis repair '.*'` sets it aside, and what"
    ):
        read_rank_costs(path)
    assert run("check", study, capsys)[0] == 1
    code, printed = run("repair", study, capsys)
    assert code == 0
    assert printed == [
        f"{RANK_COSTS_FILE}: set aside as {RANK_COSTS_FILE}.damaged; --resume measures what ranks cost again"
    ]
    assert (study / f"{RANK_COSTS_FILE}.damaged").read_text() == text


def test_a_damaged_space_and_damaged_tables_are_named_and_the_tables_written_again(study, capsys):
    write_tables(load_study(study), study)
    (study / RESULTS_FILE).write_bytes(b"no Parquet")
    (study / SPACE_FILE).write_bytes(b"question: [\n")
    code, printed = run("check", study, capsys)
    assert code == 1
    space, tables = (next(line for line in printed if name in line) for name in (SPACE_FILE, RESULTS_FILE))
    assert space.endswith(f"; the space as it was is in the first line of {JOURNAL_FILE}")
    assert "damaged" in tables
    code, printed = run("repair", study, capsys)
    assert code == 0
    assert any(line.startswith(f"{RESULTS_FILE} and ") for line in printed)
    assert (study / SPACE_FILE).read_bytes() == b"question: [\n"  # nothing else says what the user has written there
    assert pq.read_table(study / RESULTS_FILE).num_rows == len(load_study(study).trials)


def test_without_a_journal_there_is_nothing_to_repair_from(study, capsys):
    (study / JOURNAL_FILE).unlink()
    with pytest.raises(InputError, match=r"has no journal\.jsonl, from which the rest could be made again"):
        repair_study(study)


def test_damaged_notes_are_named_and_the_others_kept(study, capsys):
    first = append_note(study, NoteKind.NOTE, "whole")
    path = study / NOTES_FILE
    path.write_bytes(path.read_bytes() + b"no JSON\n")
    code, lines = run("check", study, capsys)
    assert code == 1
    assert lines[0].startswith("notes.jsonl: line 2 is damaged: ")
    code, lines = run("repair", study, capsys)
    assert (code, len(lines)) == (0, 1)
    assert "set aside as notes.jsonl.damaged; the 1 notes that are whole are kept, 1 not" in lines[0]
    assert read_notes(study) == [first]
    assert run("check", study, capsys)[0] == 0
