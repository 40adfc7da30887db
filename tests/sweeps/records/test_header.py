"""The header of a study: read with every field or few, handed on whole, refused where it is damaged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lowrank.errors import InputError
from sweeps.records.header import StudyHeader
from sweeps.records.model import StudyRecord, apply_event
from sweeps.records.names import RESULTS_FILE
from sweeps.records.tables import STUDY_KEY, read_tables, study_fields, study_from_fields, write_tables

JOURNALS = sorted((Path(__file__).resolve().parents[3] / "docs" / "results").glob("*.journal.jsonl.gz"))


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.name)
def test_the_headers_of_kept_studies_are_handed_on_whole(path):
    with gzip.open(path, "rt") as file:
        event = next(json.loads(line) for line in file)
    assert event["event"] == "study"
    assert StudyHeader.parse(event).to_json() == event


def test_fields_of_another_version_are_handed_on(tmp_path):
    study, event = StudyRecord(), {"event": "study", "time": 1.0, "name": "a", "colour": "red", "data": {"size": 3}}
    apply_event(study, event)
    assert study_from_fields(study_fields(study), {}).header.to_json() == event


def test_a_header_that_lacks_fields_is_read():
    header = StudyHeader.parse({"name": "a"})
    assert (header.data.classes, header.network.width, header.strata, header.origin) == (None, 1.0, (), None)
    assert (header.section("search"), header.began, header.is_empty) == ({}, 0.0, False)
    assert StudyHeader().is_empty


def test_what_has_changed_between_two_runs_of_the_driver_is_named():
    before = StudyHeader(commit="abc", code={"lowrank": "1", "mine": "2", "gone": "3"}, versions={"torch": "2.12"})
    same = StudyHeader(commit="abd", code={"lowrank": "1", "mine": "2", "new": "4"}, versions={"torch": "2.12"})
    assert before.code_changes(same) == []  # of what only one of the two has nothing can be said
    assert StudyHeader().code_changes(before) == []
    other = StudyHeader(commit="abd", code={"lowrank": "9", "mine": "8"}, versions={"torch": "2.13", "ray": "2.60"})
    assert before.code_changes(other) == [
        "the code of lowrank, mine has changed (abc -> abd)", "torch 2.12 -> 2.13",
    ]  # fmt: skip


def test_a_table_with_a_damaged_header_is_one_line_that_names_it(tmp_path):
    write_tables(StudyRecord(header=StudyHeader(name="a")), tmp_path)
    table = pq.read_table(tmp_path / RESULTS_FILE)
    content = {**study_fields(StudyRecord()), "header": {"data": [1]}}
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, STUDY_KEY: json.dumps(content)}),
        tmp_path / RESULTS_FILE,
    )
    with pytest.raises(InputError, match=f"{RESULTS_FILE} or .* is damaged .`header.data`: "):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": [1]}, "`header.data`: "),
        ({"strata": [{"params": 5}]}, "`header.strata.0.label` is missing"),
        ({"references": {"dense": "large"}}, "`header.references.dense`: "),
        ({"repeats": {"trial": "abcd"}}, "`header.repeats.study` is missing"),
    ],
)
def test_a_damaged_header_names_its_field(content, message):
    with pytest.raises(InputError, match=message):
        apply_event(StudyRecord(), {"event": "study", "time": 1.0, **content})
