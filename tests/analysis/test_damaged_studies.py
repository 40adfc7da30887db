"""A study with damaged or foreign records ends every command in one line and exit code 2, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.__main__ import main
from sweeps.records.load import load_study
from sweeps.records.names import EPOCHS_FILE, JOURNAL_FILE, LOCK_FILE, RESULTS_FILE
from sweeps.records.tables import write_tables
from tests.support.journals import plain_events, write_plain
from tests.support.synthetic_study import Plan, write_study

Damage = Callable[[list[dict[str, Any]]], list[Any]]  # of the events of a journal; the outcome is written as JSON lines
COMMANDS = {
    "summary": ["summary", "{study}"],
    "audit": ["audit", "{study}"],
    "profile": ["profile", "{study}"],
    "against": ["against", "{study}", "method.name=tucker"],
    "mark": ["mark", "{study}", "abcdef", "--broken", "a dead fan"],
    "report": ["report", "--study", "{study}"],
    "compare": ["compare", "{study}", "{whole}"],
    "export": ["export", "--study", "{study}"],
    "log": ["log", "{study}", "--out", "{root}/LOG.md"],
    "note": ["note", "{study}", "abcdef", "a dead fan"],
    "collate": ["collate", "{study}", "{whole}", "--name", "both", "--studies", "{root}"],
}


def first(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(event for event in events if event["event"] == kind)


def without(kind: str, field: str) -> Damage:
    def damage(events: list[dict[str, Any]]) -> list[Any]:
        del first(events, kind)[field]
        return events

    return damage


def changed(kind: str, field: str, value: Any) -> Damage:
    def damage(events: list[dict[str, Any]]) -> list[Any]:
        first(events, kind)[field] = value
        return events

    return damage


FIELDS = {
    "proposed": ("event", "time", "trial", "role", "stratum", "parameters", "specification", "counts", "proposal"),
    "epoch": ("event", "time", "trial", "epoch", "metrics"),
    "finished": ("event", "time", "trial", "status"),
    "infeasible": ("event", "time", "trial", "stratum", "reason", "parameters"),
}
DAMAGES: dict[str, Damage] = {
    "nothing in it": lambda events: [],
    "no header": lambda events: events[1:],
    "a list": lambda events: [*events, [1, 2]],
    "a number": lambda events: [*events, 5],
    "an unknown event": changed("epoch", "event", "dreamt"),
    "an unknown status": changed("finished", "status", "happy"),
    "an unknown role": changed("proposed", "role", "king"),
    "an epoch that is no number": changed("epoch", "epoch", "third"),
    "metrics in a list": changed("epoch", "metrics", [1.0]),
    "counts that are no numbers": changed("proposed", "counts", {"params": "many"}),
    "a specification in a list": changed("proposed", "specification", [1]),
    "data in a list": changed("study", "data", [1]),
    **{f"{kind} without {field}": without(kind, field) for kind, fields in FIELDS.items() for field in fields},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "whole", Plan(trials=8, epochs=3))


def check_refused(command: str, study: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in study.rglob("*"))
    values = {"study": str(study), "whole": str(whole), "root": str(study.parent)}
    assert main([word.format(**values) for word in COMMANDS[command]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (study.parent / "both").exists()
    assert set(before) >= {path.name for path in study.rglob("*")} - {LOCK_FILE}


def write_damaged(folder: Path, whole: Path, damage: Damage) -> Path:
    folder.mkdir()
    write_plain(folder / JOURNAL_FILE, damage(plain_events(whole / JOURNAL_FILE)))
    return folder


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_damage_is_one_line(damage, whole, tmp_path, capsys):
    check_refused("summary", write_damaged(tmp_path / "damaged", whole, damage), whole, capsys)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["a list", "epoch without metrics", "counts that are no numbers"])
def test_every_command_refuses_damage(command, name, whole, tmp_path, capsys):
    check_refused(command, write_damaged(tmp_path / "damaged", whole, DAMAGES[name]), whole, capsys)


@pytest.mark.parametrize("command", ["summary", "audit", "profile", "against"])
@pytest.mark.parametrize(
    ("kind", "section", "name"), [("epoch", "metrics", "val_error"), ("proposed", "counts", "mult_adds")]
)
def test_records_that_lack_a_number_are_read(command, kind, section, name, whole, tmp_path, capsys):
    """A first epoch may have no validation error, and the counts of an older study no mult-adds."""

    def damage(events: list[dict[str, Any]]) -> list[Any]:
        for event in events:
            if event["event"] == kind and event.get("epoch", 1) == 1:
                del event[section][name]
        return events

    study = write_damaged(tmp_path / "lacking", whole, damage)
    assert main([word.format(study=study) for word in COMMANDS[command]]) == 0


@pytest.mark.parametrize("content", [bytes(range(256)) * 8, b"{not JSON\n{}\n", "[\xe9\n".encode("latin-1")])
def test_a_file_that_is_no_journal_is_one_line(content, whole, tmp_path, capsys):
    study = tmp_path / "damaged"
    study.mkdir()
    (study / JOURNAL_FILE).write_bytes(content)
    check_refused("summary", study, whole, capsys)


@pytest.fixture
def tables(whole, tmp_path) -> Path:
    """The folder of a study that has only its tables."""
    folder = tmp_path / "tables"
    folder.mkdir()
    write_tables(load_study(whole), folder)
    return folder


def replace_column(path: Path, name: str, value: Any) -> None:
    table = pq.read_table(path)
    index = table.column_names.index(name)
    column = pa.array([value] * table.num_rows)
    pq.write_table(table.set_column(index, pa.field(name, column.type), column), path)


def test_whole_tables_are_read(tables, capsys):
    assert main(["audit", str(tables)]) == 0


@pytest.mark.parametrize("name", [RESULTS_FILE, EPOCHS_FILE])
@pytest.mark.parametrize("length", [0, 100, -10])
def test_a_table_that_is_cut_short_is_one_line(name, length, tables, whole, capsys):
    (tables / name).write_bytes((tables / name).read_bytes()[:length])
    check_refused("audit", tables, whole, capsys)


@pytest.mark.parametrize(
    ("file", "column", "value"),
    [
        (RESULTS_FILE, "parameters", "{not JSON"), (RESULTS_FILE, "specification", "[1]"),
        (RESULTS_FILE, "status", "happy"), (RESULTS_FILE, "role", "king"),
        (EPOCHS_FILE, "trial_id", "of another study"),
    ],
)  # fmt: skip
def test_foreign_content_of_a_table_is_one_line(file, column, value, tables, whole, capsys):
    replace_column(tables / file, column, value)
    check_refused("audit", tables, whole, capsys)


def test_a_table_of_something_else_is_one_line(tables, whole, capsys):
    pq.write_table(pa.table({"colour": ["red"]}), tables / RESULTS_FILE)
    check_refused("audit", tables, whole, capsys)
