"""The claims of drivers on a stored study: objects `driver.claims/NUMBER`, each written by its driver alone."""

from __future__ import annotations

import json
import re

from sweeps.storage.remote import Storage

CLAIMS_FOLDER = "driver.claims"
DRIVER_FILE = "driver.json"  # the same for versions of this project that know no claims
_NAME = re.compile(rf"{re.escape(CLAIMS_FOLDER)}/(\d+)(?:-\w+)?")  # with the driver's token where it was not created


def claim_name(number: int, token: str = "") -> str:
    """Name a claim.

    Args:
        number: of the driver.
        token: of the driver, where the storage cannot create an object conditionally.

    Returns:
        The object's name.
    """
    return f"{CLAIMS_FOLDER}/{number:06d}" + (f"-{token}" if token else "")


def list_claims(storage: Storage) -> dict[str, int]:
    """List the claims on a study.

    Args:
        storage: the study's.

    Returns:
        The number of each driver by the name of its claim.
    """
    matches = (_NAME.fullmatch(name) for name in storage.names(CLAIMS_FOLDER))
    return {match[0]: int(match[1]) for match in matches if match}


def newest_claim(storage: Storage) -> tuple[int, str]:
    """Find the claim of the driver that runs the study, or ran it last.

    Args:
        storage: the study's.

    Returns:
        The driver's number and the object's name; 0 and "" where no driver has claimed it.
    """
    return min(((number, name) for name, number in list_claims(storage).items()), key=_newest_first, default=(0, ""))


def _newest_first(claim: tuple[int, str]) -> tuple[int, str]:
    return -claim[0], claim[1]


def read_claim(storage: Storage, name: str) -> dict[str, object]:
    """Read a claim.

    Args:
        storage: the study's.
        name: the object's.

    Returns:
        What the driver wrote; empty where that is damaged, or is being written.

    Raises:
        OSError: the storage does not answer, or there is no such object.
    """
    try:
        claim = json.loads(storage.get(name))
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}


def stored_sizes(storage: Storage) -> dict[str, tuple[int, int]]:
    """Return how much of each growing file the last driver has stored, as it said itself.

    Args:
        storage: the study's.

    Returns:
        Bytes and their crc32 by the file's name; empty where no driver has said it.

    Raises:
        OSError: the storage does not answer.
    """
    _, name = newest_claim(storage)
    stored = read_claim(storage, name).get("stored") if name else None
    return {
        file: (size["bytes"], size["crc32"])
        for file, size in (stored.items() if isinstance(stored, dict) else ())
        if isinstance(size, dict) and isinstance(size.get("bytes"), int) and isinstance(size.get("crc32"), int)
    }


def read_driver_file(storage: Storage) -> dict[str, object] | None:
    """Read `driver.json`.

    Args:
        storage: the study's.

    Returns:
        Who runs the study by that file; None where there is none.

    Raises:
        OSError: it is damaged, or the storage does not answer.
    """
    try:
        driver = json.loads(storage.get(DRIVER_FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        driver = None
    fields = {"token": str, "host": str, "pid": int}
    if isinstance(driver, dict) and all(isinstance(driver.get(name), kind) for name, kind in fields.items()):
        return driver
    raise OSError(f"{DRIVER_FILE} is damaged and does not say who runs the study; if no other driver does, delete it")
