"""Starts Ray on this machine or connects to a cluster, with the environment that a study needs."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError

from lowrank.errors import InputError
from lowrank.networks import user_modules
from lowrank.utils import first_line, usable_cores
from sweeps.cluster.local_ray import check_private, private_folder, remove_ended_sessions, require_token
from sweeps.cluster.ray_adapter import (
    ENVIRONMENT,
    is_startup_timeout,
    limit_started_workers,
    preload_modules,
    project_first,
    token_is_enabled,
    watch_sigterm_handler,
    without_side_processes,
)
from sweeps.utils import handle_sigterm

CONNECT_SECONDS = 5.0  # for the head to answer
MAX_STARTS = 3  # on a busy machine a start may outlast the 30 s that Ray allows
_SHIPPED: set[str] = set()  # networks of the user's whose modules the workers of this connection have


def connect(
    address: str | None, cpus: int | None = None, own_networks: Collection[str] = (), *, allow_open_ports: bool = False,
    workers: int | None = None,
) -> None:  # fmt: skip
    """Start Ray on this machine or connect to a cluster.

    To a cluster, the modules of the user's networks are shipped. Nothing happens if this process is connected already,
    e.g. by an earlier study of a series.

    Args:
        address: `auto` or HOST:PORT of a cluster's head; None starts Ray on this machine alone.
        cpus: CPUs of a Ray that is started here; None for all that this process may use.
        own_networks: names of networks in the user's code, which the workers make.
        allow_open_ports: whether a Ray that is started here may answer everybody, as `RAY_AUTH_MODE=disabled` says.
        workers: that a Ray that is started here starts at once; None for one for each CPU.

    Raises:
        InputError: Ray would answer everybody and may not, no cluster answers at `address`, Ray does not start, or the
            connection that there is was made without the modules of a network.
    """
    if address and address != "auto":
        _check_address(address)
    if ray.is_initialized():
        missing = [name for name in own_networks if address and name not in _SHIPPED]
        if missing:
            raise InputError(
                f"the modules of {missing[0]} are not on the cluster, since the first study of the series did not "
                "use it; run this study by itself"
            )
        return
    if not address:
        require_token(allow_open_ports=allow_open_ports)
    os.environ.update(ENVIRONMENT)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with watch_sigterm_handler(handle_sigterm):
            if address:
                with _staged_modules(own_networks) as modules:
                    environment = {"py_modules": modules} if modules else None
                    ray.init(
                        address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment,
                        job_config=project_first(),
                    )  # fmt: skip
                _SHIPPED.update(own_networks)
            else:
                cpus = usable_cores() if cpus is None else cpus
                _start_here(cpus, min(cpus, cpus if workers is None else workers), allow_open_ports)
    except InputError:
        raise
    except (OSError, RayError, ValueError, RuntimeError) as error:
        if not address:
            raise InputError(f"Ray does not start on this machine: {first_line(error)}") from error
        raise InputError(
            f"no Ray cluster answers at {address!r} ({first_line(error)}); give `auto`, HOST:PORT, or leave --address "
            "out"
        ) from error
    handle_sigterm()  # Ray's core has set a handler of its own, which ends the process without a word


def is_connected() -> bool:
    """Tell whether this process has started Ray or joined a cluster already.

    Returns:
        True if it has, e.g. for an earlier study of a series.
    """
    return bool(ray.is_initialized())


@contextmanager
def _staged_modules(own_networks: Collection[str]) -> Iterator[list[str]]:
    """Lay the user's modules out as Ray ships them, and say which they are; gives their paths."""
    modules: dict[str, Path] = {}
    for name in own_networks:
        modules |= user_modules(name)
    with tempfile.TemporaryDirectory(prefix="modules-") as folder:
        paths, size = [], 0
        for name, path in modules.items():
            if path.is_dir():
                paths.append(str(path))
                size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            else:  # a file is imported under a name of its own
                paths.append(str(shutil.copyfile(path, Path(folder, f"{name}.py"))))
                size += path.stat().st_size
        if modules:
            names = ", ".join(path.name for path in modules.values())
            print(f"shipped to the machines of the cluster: {names} ({max(1, size // 1000):,} kB); what these modules "
                  "import besides must be installed there", flush=True)  # fmt: skip
        yield paths


def _start_here(cpus: int, workers: int, allow_open_ports: bool) -> None:
    """Start Ray on this machine, again if it takes too long; raises InputError after `MAX_STARTS`.

    The address is `local`, for Ray would otherwise join the cluster that anybody has started last on this machine.
    """
    folder = private_folder()
    remove_ended_sessions(folder / "ray")
    for attempt in range(1, MAX_STARTS + 1):
        try:
            with preload_modules(workers), without_side_processes(), limit_started_workers(workers):
                ray.init(
                    address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                    logging_level=logging.ERROR, _temp_dir=str(folder / "ray"), job_config=project_first(),
                )  # fmt: skip
            break
        except Exception as error:
            if not is_startup_timeout(error):
                raise
            ray.shutdown()
            if attempt == MAX_STARTS:
                raise InputError(f"Ray does not start on this machine: {error}") from error
            print("Ray did not start within its 30 s; trying again", flush=True)
    try:
        if not allow_open_ports or token_is_enabled():
            check_private(folder)
    except InputError:
        ray.shutdown()
        raise


def _check_address(address: str) -> None:
    """Raise InputError if nothing listens at HOST:PORT, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address must be auto or HOST:PORT, but got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers at {address} ({error}); start a head with `ray start --head`") from error
