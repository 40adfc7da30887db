"""The journal: complete lines after a kill, a full disk or many threads; one writer, many readers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sweeps.records.events import Event
from sweeps.records.journal import Journal, JournalReader, StudyLostError
from tests.support.journals import read_events
from tests.support.waiting import scaled

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
    assert write(path, fields) == list(read_events(path))


@given(fields=events, data=st.data())
@per_example
def test_a_journal_cut_at_any_byte_keeps_its_complete_lines_and_can_be_continued(tmp_path, fields, data):
    path = tmp_path / "journal.jsonl"
    written = write(path, fields)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert list(read_events(path)) == written[:whole]
    journal = Journal(path)
    journal.append(Event.CLOSED)
    journal.close()
    assert [event["event"] for event in read_events(path)] == ["epoch"] * whole + ["closed"]


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
        seen += [line.event for line in reader.scan()]
        reader = JournalReader(path, reader.offset)  # as after a restart
    assert seen == written


def test_the_error_of_a_damaged_line_names_its_byte(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event":"closed","time":1}\n{"event\x00\n')
    with pytest.raises(ValueError, match=r"line 2 at byte 28 is damaged: .*; `python -m analysis check .*` lists all"):
        list(read_events(path))


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
    found = [(event["trial"], event["epoch"]) for event in read_events(journal.path)]
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
    numbers = [event["number"] for event in read_events(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > last


class Short:
    """A file on a disk that takes five more bytes of each write."""

    def __init__(self, file):
        self.file = file

    def write(self, line):
        return self.file.write(line[:5])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_leaves_no_incomplete_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Event.CLOSED, time=1.0)
    before = journal.path.read_bytes()

    real = journal._file
    monkeypatch.setattr(journal, "_file", Short(real))
    with pytest.raises(OSError, match="the disk is full, the last record was not written"):
        journal.append(Event.CLOSED)
    assert journal.path.read_bytes() == before
    monkeypatch.setattr(journal, "_file", real)
    journal.append(Event.CLOSED)
    journal.close()
    assert len(list(read_events(journal.path))) == 2


def test_events_carry_their_kind_and_time(tmp_path):
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    record = journal.append(Event.FINISHED, sync=True, trial="t", status="completed")
    journal.close()
    written = json.loads(journal.path.read_text())
    assert list(written.items())[:-3] == list(record.items())
    assert (written["record_version"], written["line"]) == (1, 1)
    assert list(read_events(journal.path)) == [record]
    assert record["event"] == "finished"
    assert record["time"] > 1.7e9


def sealed_journal(folder: Path, count: int = 5) -> Path:
    """A journal of so many epochs."""
    journal = Journal(folder / "journal.jsonl")
    for number in range(count):
        journal.append(Event.EPOCH, trial="t", epoch=number, metrics={"val_error": 9.25})
    journal.close()
    return journal.path


@pytest.mark.parametrize("position", [0.1, 0.5, 0.95])
def test_a_changed_digit_is_noticed_and_named_by_line_and_byte(tmp_path, position):
    path = sealed_journal(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    start = sum(map(len, lines[:2]))
    digits = [index for index, byte in enumerate(lines[2]) if chr(byte).isdigit()]
    index = start + digits[int(position * len(digits))]
    content = bytearray(path.read_bytes())
    content[index] = ord("1") if content[index] != ord("1") else ord("2")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"line 3 at byte {start} is damaged: its checksum does not fit its content"):
        list(read_events(path))


def test_a_lost_line_and_a_doubled_one_are_noticed(tmp_path):
    path = sealed_journal(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[3:]]))
    with pytest.raises(ValueError, match=f"line 4 at byte {len(lines[0])} is damaged: 2 lines before it are lost"):
        list(read_events(path))
    path.write_bytes(b"".join([*lines[:2], *lines[1:]]))
    start = sum(map(len, lines[:2]))
    with pytest.raises(ValueError, match=f"at byte {start} is damaged: it says that it is line 2, which has been read"):
        list(read_events(path))


def test_an_older_journal_is_read_as_it_is_and_continued_with_checksums(tmp_path):
    path = tmp_path / "journal.jsonl"
    old = [{"event": "epoch", "time": float(number)} for number in range(3)]
    path.write_text("".join(json.dumps(event) + "\n" for event in old))
    journal = Journal(path)
    added = [journal.append(Event.CLOSED, reason="time"), journal.append(Event.CLOSED, reason="finished")]
    journal.close()
    assert list(read_events(path)) == [*old, *added]
    assert [json.loads(line).get("line") for line in path.read_text().splitlines()] == [None, None, None, 4, 5]
    content = path.read_bytes()
    again = Journal(path)
    again.append(Event.CLOSED, reason="finished")
    again.close()
    assert path.read_bytes().startswith(content)
    assert json.loads(path.read_bytes().splitlines()[-1])["line"] == 6


def test_a_line_of_a_newer_version_is_refused(tmp_path):
    path = sealed_journal(tmp_path, 1)
    content = path.read_bytes().replace(b'"record_version":1', b'"record_version":2')[:-21]
    path.write_bytes(content + f',"crc32":"{zlib.crc32(content):08x}"}}\n'.encode())
    with pytest.raises(ValueError, match=r"a newer version of this project wrote it \(records of version 2;"):
        list(read_events(path))


@pytest.mark.parametrize("time", ["Infinity", "NaN", '"later"'])
def test_an_impossible_time_of_an_older_line_does_not_spoil_the_next_ones(tmp_path, time):
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"event":"closed","time":{time}}}\n')
    journal = Journal(path)
    assert 1.7e9 < journal.append(Event.CLOSED)["time"] < 1e10
    journal.close()


def test_two_short_writes_leave_whole_lines(tmp_path, monkeypatch):
    path = sealed_journal(tmp_path, 2)
    before = path.read_bytes()
    journal = Journal(path)
    real = journal._file
    for _ in range(2):
        monkeypatch.setattr(journal, "_file", Short(real))
        with pytest.raises(OSError, match="the disk is full"):
            journal.append(Event.CLOSED)
        assert path.read_bytes() == before
    monkeypatch.setattr(journal, "_file", real)
    journal.append(Event.CLOSED)
    journal.close()
    assert [event["event"] for event in read_events(path)] == ["epoch", "epoch", "closed"]


def test_a_journal_that_refuses_writes_nothing_more(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Event.CLOSED)
    journal.raise_if_refused()
    journal.refuse(StudyLostError("taken over"))
    journal.refuse(ValueError("said too late"))
    before = journal.path.read_bytes()
    with pytest.raises(StudyLostError, match="taken over"):
        journal.append(Event.CLOSED)
    with pytest.raises(StudyLostError, match="taken over"):
        journal.raise_if_refused()
    journal.close()
    assert journal.path.read_bytes() == before


def test_a_frozen_journal_lets_other_threads_wait(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Event.CLOSED)
    journal.freeze()
    thread = threading.Thread(target=journal.append, args=(Event.CLOSED,), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert len(list(read_events(journal.path))) == 1
    journal._lock.release()
    thread.join(scaled())
    journal.close()
    assert len(list(read_events(journal.path))) == 2
