"""Starts Ray on this machine or connects to a cluster, with the environment that a study needs."""

from __future__ import annotations

import logging
import os
import socket

import ray
from ray.exceptions import RayError

from lowrank.errors import InputError
from sweeps.utils.signals import heed_termination

ANSWER_SECONDS = 5.0
STARTS = 3
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the record
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a diverged trial's last result has no error
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative data folders keep their meaning
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # who was given no card sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # reasons are recorded and shown in the final table
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # nothing is restored from Tune's snapshots, which grow with the study
}


def connect(address: str | None, cpus: int | None = None) -> None:
    """Start Ray on this machine, or connect to the cluster at `address`; raises InputError if none answers there."""
    if address and address != "auto":
        _check_address(address)
    if ray.is_initialized():  # by an earlier study of a series
        return
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_here(cpus)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"no Ray cluster answers at {address!r} ({detail}); give `auto`, HOST:PORT, or leave --address out"
        ) from error
    heed_termination()


def _start_here(cpus: int | None) -> None:
    """Start Ray on this machine; on a busy one its start may outlast the 30 s that Ray itself allows.

    `local`, since Ray would otherwise join whatever cluster was started last on this machine, by anybody.
    """
    for left in range(STARTS - 1, -1, -1):
        try:
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
            return
        except Exception as error:  # Ray has no class of its own for this
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise InputError(f"Ray does not start on this machine: {error}") from error
            print("Ray did not start within its 30 s; trying again", flush=True)


def _check_address(address: str) -> None:
    """Ray itself waits for minutes when nothing listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address must be auto or HOST:PORT, but got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers at {address} ({error}); start a head with `ray start --head`") from error
