"""The lease: one driver runs a study, and one that has lost it notices and writes nothing more."""

from __future__ import annotations

import json
import os
import platform
import threading

import pytest

from lowrank.errors import InputError
from sweeps.records.journal import StudyLostError
from sweeps.storage import mirror as mirror_module, remote
from sweeps.storage.claims import CLAIMS_FOLDER, DRIVER_FILE, list_claims, stored_sizes
from sweeps.storage.conditional_put import ConditionalPut
from sweeps.storage.lease import LEASE_SECONDS, MAX_PUT_SECONDS, SETTLE_SECONDS, Lease
from sweeps.storage.mirror import StudyMirror
from sweeps.storage.remote import Storage
from sweeps.utils.process_ids import process_identity
from tests.support.waiting import scaled, wait_until


class Time:
    """A clock that only this test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def any_storage(uri):
    """A folder and a bucket, for what depends on the storage."""
    return Storage(uri, "small")


@pytest.fixture
def storage(tmp_path):
    return Storage((tmp_path / "stored").as_uri(), "small")


def silent(monkeypatch, seconds=LEASE_SECONDS + 1):
    """The storage says that every object is so old."""
    monkeypatch.setattr(Storage, "age", lambda self, name: seconds)


def alive(lease):
    """Pretend that a lease is of another machine, so that its driver's end cannot be seen."""
    lease._driver |= {"host": "elsewhere", "boot": "another"}
    return lease


def test_a_study_is_claimed_once_and_free_after_its_release(any_storage):
    first = alive(Lease(any_storage, "small"))
    first.acquire()
    with pytest.raises(InputError, match=r"'small' is being run by elsewhere, heard of \d+ s ago; .* try again in"):
        Lease(any_storage, "small").acquire()
    first.record({"journal.jsonl": {"bytes": 3, "crc32": 7}})
    first.release()
    second = Lease(any_storage, "small")
    second.acquire()
    assert second.number == first.number + 1
    assert list(list_claims(any_storage).values()) == [second.number]
    assert stored_sizes(any_storage) == {"journal.jsonl": (3, 7)}  # which the next driver says again


def test_a_driver_that_has_lost_its_study_neither_signs_nor_releases_it(any_storage, monkeypatch):
    time = Time()
    first = Lease(any_storage, "small", clock=time)
    first.acquire()
    with monkeypatch.context() as later:
        silent(later)
        second = alive(Lease(any_storage, "small"))
        second.acquire()
    before = {name: any_storage.get(name) for name in any_storage.names()}
    time.wait(LEASE_SECONDS)
    for action in (first.check, first.renew, first.release):
        with pytest.raises(StudyLostError, match="the driver on elsewhere has taken 'small' over"):
            action()
    assert {name: any_storage.get(name) for name in any_storage.names()} == before
    second.check()
    second.release()


def test_a_claim_between_the_look_and_the_writing_is_noticed(any_storage, monkeypatch):
    """Two machines look at the same moment and both see a study that is free."""
    first, second = alive(Lease(any_storage, "small")), Lease(any_storage, "small")
    create, rivals = Storage.create, [first]

    def overtaken(self, name, content):
        if rivals:
            rivals.pop().acquire()
        return create(self, name, content)

    monkeypatch.setattr(Storage, "create", overtaken)
    with pytest.raises(InputError, match="'small' is being run by elsewhere"):
        second.acquire()
    first.check()


def test_a_claim_that_was_not_signed_yet_counts(storage):
    """A driver that was stopped right after its claim may go on at any moment."""
    storage.create(f"{CLAIMS_FOLDER}/000004", b"")
    with pytest.raises(InputError, match="is being run by another driver"):
        Lease(storage, "small").acquire()


def test_the_number_rises_above_those_of_stored_parts(storage):
    storage.put("journal.jsonl.parts/000000000000000-000007", b"{}\n")
    lease = Lease(storage, "small")
    lease.acquire()
    assert lease.number == 8


def test_a_study_that_never_began_leaves_no_claim(storage):
    lease = Lease(storage, "small")
    lease.acquire()
    lease.release()
    assert storage.names() == {}


def test_a_driver_of_an_older_version_is_respected(storage, monkeypatch):
    older = json.dumps({"token": "t", "host": "elsewhere", "pid": 1}).encode()
    storage.put(DRIVER_FILE, older)
    with pytest.raises(InputError, match="'small' is being run by elsewhere"):
        Lease(storage, "small").acquire()
    with monkeypatch.context() as later:
        silent(later)
        lease = Lease(storage, "small")
        lease.acquire()
    assert json.loads(storage.get(DRIVER_FILE))["host"] == platform.node()
    storage.put(DRIVER_FILE, older)  # it takes the study over, as it can: it knows no claims
    with pytest.raises(StudyLostError, match="elsewhere"):
        lease.renew()


@pytest.mark.parametrize(
    ("change", "is_free"),
    [
        ({}, True),
        ({"boot": "another"}, False),  # a cloned machine with the same host name
        ({"namespace": "pid:[1]"}, False),  # a container, which counts its processes anew
        ({"boot": ""}, False),  # a system that does not say
        ({"pid": os.getpid()}, True),  # the number was given again: another process, which started later
        ({"pid": os.getpid(), "started": process_identity()["started"]}, False),
    ],
)
def test_only_a_process_that_certainly_ended_loses_its_lease_at_once(storage, change, is_free):
    lease = Lease(storage, "small")
    lease._driver |= {"pid": 2**22 + 1, "started": "1", **change}
    lease.acquire()
    if is_free:
        Lease(storage, "small").acquire()
        return
    with pytest.raises(InputError, match="is being run by"):
        Lease(storage, "small").acquire()


def slow_lease(storage, time, **driver):
    lease = Lease(storage, "small", wait=time.wait, clock=time)
    lease._driver |= driver
    return lease


def test_a_bucket_that_ignores_the_condition_is_noticed(uri, any_storage, monkeypatch, capsys):
    if not uri.startswith("s3"):
        monkeypatch.setattr(Storage, "create", lambda self, name, content: None)
    else:

        def ignores(self, bucket, key, content):
            self._connect().put_object(Bucket=bucket, Key=key, Body=content)
            return True

        monkeypatch.setattr(ConditionalPut, "create", ignores)
        assert any_storage.create("one", b"") is None
        assert any_storage.names() == {}
    time = Time()
    slow_lease(any_storage, time).acquire()
    assert time.now == SETTLE_SECONDS
    assert "creates no object conditionally: waiting 10 s" in capsys.readouterr().out


def test_without_conditional_put_one_of_two_gets_the_study(storage, monkeypatch):
    monkeypatch.setattr(Storage, "create", lambda self, name, content: None)
    first, second = Time(), Time()
    winner = alive(slow_lease(storage, first, token="a"))
    loser = slow_lease(storage, second, token="b")
    first.wait = lambda seconds: None

    def wait(seconds):  # the other one has looked before this one wrote, and writes while this one waits
        with monkeypatch.context() as early:
            early.setattr(Lease, "_check_free", lambda self: 0)
            winner.acquire()

    loser._wait = wait
    with pytest.raises(InputError, match="is being run by elsewhere"):
        loser.acquire()
    winner.check()
    assert list(list_claims(storage)) == [f"{CLAIMS_FOLDER}/000001-a"]


def test_without_conditional_put_a_slow_claim_is_taken_back(storage, monkeypatch):
    monkeypatch.setattr(Storage, "create", lambda self, name, content: None)
    time = Time()
    put = Storage.put

    def slow(self, name, content):
        time.now += MAX_PUT_SECONDS + 1
        put(self, name, content)

    monkeypatch.setattr(Storage, "put", slow)
    with pytest.raises(InputError, match="another driver has just been at work on 'small'; try again"):
        slow_lease(storage, time).acquire()
    assert list_claims(storage) == {}


# The mirror


@pytest.fixture
def mirror(storage, study):
    """One that stores only when a test says so, and looks at the lease each time."""
    time = Time()

    def clock():
        time.now += LEASE_SECONDS
        return time.now

    mirror = StudyMirror(storage, study, 3600, Lease(storage, "small", clock=clock), lambda: None)
    mirror.claim()
    mirror.fetch()
    return mirror


def taken_over(storage, study, monkeypatch, tmp_path):
    """A second driver, on another machine, that has taken the study over."""
    with monkeypatch.context() as later:
        silent(later)
        folder = tmp_path / "second" / "small"
        mirror = StudyMirror(storage, folder, 3600, alive(Lease(storage, "small")), lambda: None)
        mirror.claim()
        mirror.fetch()
    return mirror


def append(folder, *names):
    with (folder / "journal.jsonl").open("a") as journal:
        journal.writelines(f'{{"event": "{name}"}}\n' for name in names)


def test_a_driver_that_lost_its_study_stops_and_writes_nothing_more(any_storage, study, monkeypatch, tmp_path, capsys):
    """The records of the two are not mixed, also after the second has released the study."""
    time, stopped, refused = Time(), [], []
    lease = Lease(any_storage, "small", clock=time)
    first = StudyMirror(any_storage, study, 3600, lease, lambda: stopped.append(True))
    first.claim()
    first.fetch()
    first.on_loss(refused.append)
    append(study, "a1")
    first.store_changes()
    second = taken_over(any_storage, study, monkeypatch, tmp_path)
    append(second.folder, "b1")
    second.store_changes()
    time.wait(LEASE_SECONDS)
    append(study, "a2")
    first._try_round()
    assert (stopped, [str(error) for error in refused]) == ([True], ["the driver on elsewhere has taken 'small' over"])
    assert second.finish() is None
    append(study, "a3")
    first._try_round()
    assert first.finish() is None  # that is said by the error, and is no outage
    assert str(first.lost) == "the driver on elsewhere has taken 'small' over"
    lines = any_storage.read_parts("journal.jsonl").decode().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["study", "proposed", "a1", "b1"]
    assert stopped == [True]
    assert "trying on" not in capsys.readouterr().out


def test_a_part_that_is_on_its_way_at_the_takeover_is_not_read(storage, study, monkeypatch, tmp_path):
    """The first driver has looked at the lease, and writes after the second has begun to."""
    time = Time()
    first = StudyMirror(storage, study, 3600, Lease(storage, "small", clock=time), lambda: None)
    first.claim()
    first.fetch()
    first.store_changes()
    second = taken_over(storage, study, monkeypatch, tmp_path)
    append(second.folder, "b1")
    second.store_changes()
    append(study, "a1", "a2", "a3")
    with pytest.raises(StudyLostError):  # at its sign of life; its part was written before that
        first.store_changes()
    lines = storage.read_parts("journal.jsonl").decode().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["study", "proposed", "b1"]


def test_a_loss_in_the_middle_of_a_round_ends_the_round(storage, study, mirror, monkeypatch, tmp_path):
    (study / "trials" / "b").mkdir()
    (study / "trials" / "b" / "checkpoint.safetensors").write_bytes(b"ours")
    put = Storage.put

    def taken(self, name, content):
        put(self, name, content)
        if name == "trials/a/checkpoint.safetensors":
            monkeypatch.setattr(Storage, "put", put)
            taken_over(storage, study, monkeypatch, tmp_path)

    monkeypatch.setattr(Storage, "put", taken)
    mirror._try_round()
    assert mirror.lost is not None
    assert list(storage.names("trials")) == ["trials/a/checkpoint.safetensors"]


def test_signs_of_life_are_given_while_a_round_takes_long(storage, study, mirror, monkeypatch):
    put, signs = Storage.put, []

    def slow(self, name, content):
        if name.startswith("trials/"):
            mirror._try(mirror.lease.renew)  # what the thread `lease` does meanwhile
        if name.startswith(CLAIMS_FOLDER):
            signs.append(name)
        put(self, name, content)

    (study / "trials" / "a" / "more").write_bytes(b"")
    monkeypatch.setattr(Storage, "put", slow)
    mirror.store_changes()
    assert len(signs) == 3  # one for each file, and the record of the round


def test_an_outage_is_no_loss(storage, study, mirror, monkeypatch):
    def fails(self, name, content):
        raise OSError("no route")

    with monkeypatch.context() as away:
        away.setattr(Storage, "put", fails)
        mirror._try_round()
        assert (mirror.error, mirror.lost) == ("no route", None)
    mirror._try_round()
    assert (mirror.error, mirror.lost) == (None, None)
    assert mirror.finish() is None


def test_a_storage_that_hangs_at_the_end_is_given_up_with_one_line(storage, study, mirror, monkeypatch):
    """The claim is left as it is: the round that hangs may still write."""
    monkeypatch.setattr(mirror_module, "HANG_SECONDS", 0.2)
    put, answers = Storage.put, threading.Event()

    def hangs(self, name, content):
        if name.startswith("trials/"):
            assert answers.wait(scaled())
        put(self, name, content)

    monkeypatch.setattr(Storage, "put", hangs)
    mirror.start()
    try:
        message = mirror.finish()
        assert message.startswith(f"{storage.uri} lacks what came last (it has taken nothing for 0 s); nothing is lost")
        assert mirror.error is not None
        assert storage.names(CLAIMS_FOLDER)
    finally:
        answers.set()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name == "storage"], "the end of the round")


def test_a_large_object_is_written_in_pieces_that_count_as_progress(any_storage, monkeypatch):
    monkeypatch.setattr(remote, "PIECE_BYTES", 3)
    before = any_storage.progress
    any_storage.put("large", b"0123456789")
    assert any_storage.get("large") == b"0123456789"
    assert any_storage.progress - before == (1 if any_storage.uri.startswith("file:") else 5)


def test_a_mirror_that_has_released_its_study_does_it_once(storage, study, mirror):
    assert mirror.finish() is None
    Lease(storage, "small").acquire()
    assert mirror.finish() is None  # the watch of the cluster's head and the main thread may both call it
    assert mirror.lost is None


def test_a_new_study_must_find_nothing_stored(storage, study, mirror, tmp_path):
    mirror.store_changes()
    mirror.finish()
    again = StudyMirror(storage, tmp_path / "other" / "small", lease=Lease(storage, "small"))
    again.claim()
    with pytest.raises(InputError, match=r"the study 'small' exists in .*; --resume small continues it"):
        again.check_new()
    again.finish()
