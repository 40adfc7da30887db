"""A study's folder is mirrored while a block runs: claimed, stored, released, and given up when it is lost."""

from __future__ import annotations

import signal
import threading

import pytest

from lowrank.errors import InputError
from sweeps.records.journal import StudyLostError
from sweeps.storage import mirror as module
from sweeps.storage.lease import Lease
from sweeps.storage.mirror import StudyMirror, interrupt_main_thread, mirror_study
from sweeps.storage.remote import Storage
from tests.support.waiting import PATIENCE_SECONDS, scaled, wait_until


@pytest.fixture
def uri(tmp_path):
    return (tmp_path / "stored").as_uri()


def test_without_a_storage_there_is_no_mirror(study):
    with mirror_study(None, study, new=True) as mirror:
        assert mirror is None


def test_what_a_block_writes_is_stored_and_the_study_is_free_after_it(uri, study, capsys):
    with mirror_study(uri, study, new=True) as mirror:
        mirror.start()
        (study / "space.yaml").write_text("question: Which one?\n")
    stored = Storage(uri, "small")
    assert stored.get("space.yaml") == b"question: Which one?\n"
    assert stored.read_parts("journal.jsonl") == (study / "journal.jsonl").read_bytes()
    assert (mirror.error, capsys.readouterr().out) == (None, "")
    Lease(Storage(uri, "small"), "small").acquire()


def test_a_new_study_must_not_be_in_the_storage_already(uri, study, capsys):
    with mirror_study(uri, study, new=True) as mirror:
        mirror.start()
    (study / "space.yaml").write_text("question: Another one?\n")
    message = "the study 'small' exists in .*stored; --resume small continues it"
    with pytest.raises(InputError, match=message), mirror_study(uri, study, new=True):
        pytest.fail("the block must not run")
    assert Storage(uri, "small").get("space.yaml") == b"question: Which?\n"
    with mirror_study(uri, study, new=False) as mirror:  # and nobody holds it now
        assert mirror.lease.number


def test_a_storage_that_does_not_answer_is_bad_input(uri, study, monkeypatch):
    mirror = StudyMirror(Storage(uri, "small"), study)

    def names(self, prefix=""):
        raise OSError("no route to host")

    monkeypatch.setattr(Storage, "names", names)
    with pytest.raises(InputError, match="stored: no route to host"):
        mirror.check_new()


def test_what_the_storage_lacks_at_the_end_is_said(uri, study, monkeypatch, capsys):
    with mirror_study(uri, study, new=True) as mirror:
        mirror.start()

        def put(self, name, content):
            raise OSError("the bucket is full")

        monkeypatch.setattr(Storage, "put", put)
    assert mirror.error == "the bucket is full"
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{uri} lacks what came last (the bucket is full); nothing is lost, it is in {study}: resume the study from "
        "there with the same --storage"
    )


def test_a_study_that_is_lost_ends_the_block_with_that_error(uri, study):
    """Whatever the block itself raised: it was stopped because of the loss."""
    lost, seen = StudyLostError("the driver on elsewhere has taken 'small' over"), []

    def lose() -> None:
        with mirror_study(uri, study, new=True) as mirror:
            mirror.lost = lost
            mirror.on_loss(seen.append)  # also one that is registered after the loss hears of it
            raise KeyboardInterrupt

    with pytest.raises(StudyLostError) as raised:
        lose()
    assert raised.value is lost
    assert seen == [lost]


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("put", "does not take the records (no route); trying on"),
        ("renew", "takes no sign of life (no route); trying on. Another driver may take the study over after 60 s"),
    ],
)
def test_an_outage_is_said_once_however_long_it_lasts(uri, study, monkeypatch, capsys, broken, line):
    owner = Storage if broken == "put" else Lease
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01 if owner is Lease else 3600)
    real, calls, over = getattr(owner, broken), [], threading.Event()

    def fail(self, *arguments):
        calls.append(arguments)
        if not over.is_set():
            raise OSError("no route")
        return real(self, *arguments)

    mirror = StudyMirror(Storage(uri, "small"), study, seconds=0.01)
    mirror.claim()
    mirror.fetch()
    monkeypatch.setattr(owner, broken, fail)
    mirror.start()
    wait_until(lambda: len(calls) > 3, "several attempts")
    over.set()
    assert mirror.finish() is None
    assert capsys.readouterr().out.splitlines() == [f"{uri} {line}"]


def test_the_main_thread_is_interrupted_while_it_waits():
    thread = threading.Thread(target=interrupt_main_thread)

    def wait() -> None:
        thread.start()
        threading.Event().wait(scaled(PATIENCE_SECONDS))

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # that of the command would remember it
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGINT, handler)
    thread.join()
