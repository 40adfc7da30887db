"""The lease of a stored study: one driver runs it, and a driver that has lost it notices before it writes on.

Drivers are numbered: each one that takes the study creates the object `driver.claims/NUMBER` with the next number,
which the storage lets only one do. Who has the highest number runs the study. The object is written again and again as
a sign of life, by its driver alone, and says how much of each growing file is stored. `driver.json` is such a sign for
versions of this project that know no numbers.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from lowrank.errors import InputError
from lowrank.utils import first_line
from sweeps.records import StudyLostError
from sweeps.storage.claims import DRIVER_FILE, claim_name, list_claims, newest_claim, read_claim, read_driver_file
from sweeps.storage.parts import PARTS_SUFFIX, highest_driver
from sweeps.storage.remote import GROWING_FILES, STORAGE_ERRORS, Storage
from sweeps.utils import has_ended, monotonic_time, process_identity

LEASE_SECONDS = 60.0  # without a sign of the driver, after which another machine may run the study
CHECK_SECONDS = 2.0  # for which a look at the claims holds
SETTLE_SECONDS = 10.0  # where a storage creates no object conditionally: how long to wait for the claims of others
MAX_PUT_SECONDS = SETTLE_SECONDS / 2  # of a claim there; a slower one is taken back
ATTEMPTS = 3  # to claim a study that others claim at the same moment


class Lease:
    """This driver's claim on a study.

    Args:
        storage: the study's.
        study: the study's name, for messages.
        wait: sleeps for some seconds.
        clock: gives seconds that only rise.
    """

    def __init__(
        self, storage: Storage, study: str, *, wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = monotonic_time,
    ):  # fmt: skip
        self._storage, self._study, self._wait, self._clock = storage, study, wait, clock
        self.number = 0  # of this driver; 0 before `acquire`
        self._name = ""  # of the claim
        self._driver = {"token": uuid.uuid4().hex, **process_identity()}
        self._stored: dict[str, object] = {}
        self._checked = float("-inf")
        self._lock = threading.Lock()

    def acquire(self) -> None:
        """Take the study.

        Raises:
            InputError: another driver runs the study, or the storage does not answer.
        """
        try:
            for _ in range(ATTEMPTS):
                began, number = self._clock(), self._check_free() + 1
                if self._create(number, began):
                    self.number = number
                    self.renew()
                    self._remove_older()
                    return
        except StudyLostError as error:
            raise InputError(f"{error}; try again") from error
        except STORAGE_ERRORS as error:
            raise InputError(f"{self._storage.uri}: {first_line(error)}") from error
        raise InputError(f"another driver has just been at work on {self._study!r}; try again")

    def check(self) -> None:
        """Make sure that the study is still this driver's; the storage is asked at most every CHECK_SECONDS.

        Raises:
            StudyLostError: another driver has taken it.
            OSError: the storage does not answer.
        """
        with self._lock:
            if self._clock() - self._checked >= CHECK_SECONDS:
                self._look()

    def record(self, stored: Mapping[str, Any]) -> None:
        """Say how much is stored, unless the study is lost; a sign of life too.

        Args:
            stored: `bytes` and `crc32` by the name of each growing file.

        Raises:
            StudyLostError: another driver has taken the study.
            OSError: the storage does not answer.
        """
        with self._lock:
            self._stored = dict(stored)
            self._look()
            self._storage.put(self._name, self._content())

    def renew(self) -> None:
        """Give a sign of life, unless the study is lost; to versions that know no claims too.

        Raises:
            StudyLostError: another driver has taken the study.
            OSError: the storage does not answer, or `driver.json` is damaged.
        """
        with self._lock:
            self._look()
            self._check_older_version()
            self._storage.put(self._name, self._content())
            self._storage.put(DRIVER_FILE, json.dumps({**self._driver, "claim": self.number}).encode())

    def release(self) -> None:
        """Let another driver run the study at once.

        Raises:
            StudyLostError: another driver has taken the study already; nothing is changed then.
            OSError: the storage does not answer; another driver must wait until the lease ends.
        """
        with self._lock:
            self._look()
            self._check_older_version()
            if self._stored:
                self._storage.put(self._name, self._content(released=True))
            else:  # the study has not begun
                self._storage.delete(self._name)
            self._storage.delete(DRIVER_FILE)

    def _check_free(self) -> int:
        """Return the highest number that was ever given; raises InputError if its driver, or an older one, is at work.

        A claim that cannot be read counts as its driver's sign of life.
        """
        newest, name = newest_claim(self._storage)
        owners = []
        if name:
            claim = read_claim(self._storage, name)
            stored = claim.get("stored")
            self._stored = stored if isinstance(stored, dict) else {}
            if not claim.get("released"):
                owners.append((name, claim))
        signed = read_driver_file(self._storage)
        if signed is not None and "claim" not in signed:  # of a version that knows no claims
            owners.append((DRIVER_FILE, signed))
        for name, owner in owners:
            silence = self._storage.age(name)
            if silence <= LEASE_SECONDS and not has_ended(owner):
                raise InputError(
                    f"the study {self._study!r} is being run by {owner.get('host', 'another driver')}, heard of "
                    f"{max(0, silence):.0f} s ago; if that driver is dead, try again in "
                    f"{max(1, LEASE_SECONDS - silence):.0f} s"
                )
        return max(newest, *(highest_driver(self._storage.names(f"{name}{PARTS_SUFFIX}")) for name in GROWING_FILES))

    def _create(self, number: int, began: float) -> bool:
        """Create the claim with a number; False if another driver has it. `began`: when the claims were looked at."""
        self._name = claim_name(number)
        created = self._storage.create(self._name, self._content())
        return self._create_slowly(number, began) if created is None else created

    def _create_slowly(self, number: int, began: float) -> bool:
        """Claim where the storage cannot create conditionally: write, wait, read again.

        All who looked before this claim was there have written theirs within MAX_PUT_SECONDS, or take it back. So
        after SETTLE_SECONDS each sees the others' claims, and all choose the same one.
        """
        self._name = claim_name(number, str(self._driver["token"]))
        self._storage.put(self._name, self._content())
        slow = self._clock() - began > MAX_PUT_SECONDS
        if not slow:
            print(
                f"{self._storage.uri} creates no object conditionally: waiting {SETTLE_SECONDS:.0f} s for claims of "
                "other drivers", flush=True,
            )  # fmt: skip
            self._wait(SETTLE_SECONDS)
            claims = list_claims(self._storage)
            rivals = [name for name, rival in claims.items() if rival == number]
            if max(claims.values(), default=0) == number and min(rivals) == self._name:
                return True
        self._storage.delete(self._name)
        return False

    def _look(self) -> None:
        newest, _ = newest_claim(self._storage)
        if newest > self.number:
            raise self._lost()
        self._checked = self._clock()

    def _check_older_version(self) -> None:
        """Raise StudyLostError if a version that knows no claims has taken the study over."""
        signed = read_driver_file(self._storage)
        if signed is not None and "claim" not in signed and self._storage.age(DRIVER_FILE) <= LEASE_SECONDS:
            raise StudyLostError(f"the driver on {signed['host']} has taken {self._study!r} over")

    def _lost(self) -> StudyLostError:
        _, name = newest_claim(self._storage)
        try:
            host = read_claim(self._storage, name).get("host") if name else None
        except STORAGE_ERRORS:
            host = None
        return StudyLostError(f"the driver on {host or 'another machine'} has taken {self._study!r} over")

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps({**self._driver, "stored": self._stored, "released": released}).encode()

    def _remove_older(self) -> None:
        for name, number in list_claims(self._storage).items():
            if number < self.number:
                self._storage.delete(name)
