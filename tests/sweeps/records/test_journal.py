"""The journal: complete lines after a kill, a full disk or many threads; one writer, many readers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sweeps.records.events import Event
from sweeps.records.journal import Journal, JournalReader, read_journal

ROOT = Path(__file__).resolve().parents[3]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
events = st.lists(st.dictionaries(st.sampled_from(["trial", "reason", "metrics"]), plain), max_size=8)
per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def write(path: Path, fields: list[dict]) -> list[dict]:
    path.unlink(missing_ok=True)
    journal = Journal(path)
    written = [journal.append(Event.EPOCH, time=1.5, **each) for each in fields]  # the same bytes each time
    journal.close()
    return written


@given(fields=events)
@per_example
def test_a_reader_gets_the_events_that_were_written(tmp_path, fields):
    path = tmp_path / "journal.jsonl"
    assert write(path, fields) == list(read_journal(path))


@given(fields=events, data=st.data())
@per_example
def test_a_journal_cut_at_any_byte_keeps_its_complete_lines_and_can_be_continued(tmp_path, fields, data):
    path = tmp_path / "journal.jsonl"
    written = write(path, fields)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert list(read_journal(path)) == written[:whole]
    journal = Journal(path)
    journal.append(Event.CLOSED)
    journal.close()
    assert [event["event"] for event in read_journal(path)] == ["epoch"] * whole + ["closed"]


@given(fields=events, data=st.data())
@per_example
def test_a_reader_of_a_growing_file_reads_every_event_once(tmp_path, fields, data):
    path = tmp_path / "journal.jsonl"
    written = write(path, fields)
    content = path.read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    reader, seen = JournalReader(path), []
    for cut in [*cuts, len(content)]:
        path.write_bytes(content[:cut])
        seen += list(reader.read())
        reader = JournalReader(path, reader.offset)  # as after a restart
    assert seen == written


def test_the_error_of_a_damaged_line_names_its_byte(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event":"closed","time":1}\n{"event\x00\n')
    with pytest.raises(ValueError, match="the line at byte 28 is damaged"):
        list(read_journal(path))


def test_nan_is_refused_and_writes_nothing(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append(Event.EPOCH, metrics={"val_loss": float("nan")})
    journal.close()
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


def test_lines_of_several_threads_stay_complete(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")

    def report(number):
        for epoch in range(200):
            journal.append(Event.EPOCH, trial=str(number), epoch=epoch, metrics={"x": 1.0})

    threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    found = [(event["trial"], event["epoch"]) for event in read_journal(journal.path)]
    assert sorted(found) == sorted((str(number), epoch) for number in range(4) for epoch in range(200))
    assert all([e for t, e in found if t == str(n)] == list(range(200)) for n in range(4))


def test_an_appended_event_survives_a_kill(tmp_path):
    path = tmp_path / "journal.jsonl"
    script = textwrap.dedent(f"""
        import itertools
        from pathlib import Path
        from sweeps.records.journal import Journal
        from sweeps.records.events import Event
        journal = Journal(Path({str(path)!r}))
        for number in itertools.count():
            journal.append(Event.EPOCH, number=number)
            print(number, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) > 500:
            break
    os.kill(process.pid, signal.SIGKILL)
    printed = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    last = int(printed[-1]) if printed else 501
    numbers = [event["number"] for event in read_journal(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > last


def test_a_full_disk_leaves_no_incomplete_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Event.CLOSED, time=1.0)
    before = journal.path.read_bytes()

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, line):
            return self.file.write(line[:5])

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = journal._file
    monkeypatch.setattr(journal, "_file", Full(real))
    with pytest.raises(OSError, match="the disk is full, the last record was not written"):
        journal.append(Event.CLOSED)
    assert journal.path.read_bytes() == before
    monkeypatch.setattr(journal, "_file", real)
    journal.append(Event.CLOSED)
    journal.close()
    assert len(list(read_journal(journal.path))) == 2


def test_events_carry_their_kind_and_time(tmp_path):
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    record = journal.append(Event.FINISHED, sync=True, trial="t", status="completed")
    journal.close()
    assert json.loads(journal.path.read_text()) == record
    assert record["event"] == "finished"
    assert record["time"] > 1.7e9
