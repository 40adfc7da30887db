"""Markers, skips and time limits of all tests, and the fixtures that several packages' tests share."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.groups import group_of, starts_ray
from tests.support.skips import SkipPolicy, read_allowed_skips
from tests.support.waiting import TIME_SCALE, scaled

# Before torch is loaded: on networks this small a second thread costs more than it saves
os.environ.setdefault("OMP_NUM_THREADS", "1")
GPU_SKIP = "needs {needed} GPU(s), but torch finds {available}"


# What tests write need not outlive a power cut, and this process would wait for the disk thousands of times. Commands
# that tests start do wait. A descriptor that is not open is an error still.
os.fsync = os.fstat  # type: ignore[assignment]


def _skip_sync(connection: Any, record: Any) -> None:
    """Let a SQLite database of this process not wait for the disk either."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory) -> Path:
    """An MLflow database with its tables, which take seconds to make: to be copied."""
    from sqlalchemy import Engine, event

    from sweeps.records.names import MLFLOW_FILE
    from sweeps.tracking.mlflow_store import create_database, quiet_mlflow

    quiet_mlflow()
    event.listen(Engine, "connect", _skip_sync)
    folder = tmp_path_factory.mktemp("blank")
    create_database(folder / MLFLOW_FILE, folder)
    return folder / MLFLOW_FILE


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("skips", "which tests may be skipped")
    group.addoption("--no-skips", action="store_true", help="fail if any test is skipped")
    group.addoption(
        "--allowed-skips", type=Path, metavar="FILE",
        help="fail if a test is skipped that no line `PATH: REASON` of FILE allows (* matches any text)",
    )  # fmt: skip
    group.addoption(
        "--parallel-studies", action="store_true",
        help="with -n: let studies of different files run at once, for a machine with many cores",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    allowed = read_allowed_skips(config.getoption("--allowed-skips"))
    if config.getoption("--no-skips"):
        allowed = []
    if allowed is not None and not hasattr(config, "workerinput"):  # of several processes the one that reports
        config.pluginmanager.register(SkipPolicy(allowed), "skip-policy")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without a search for garbage: imports leave little, and it took 8 of 19 s."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()  # nor is what was imported searched again while the tests run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort studies to the front, and scale the time limits of all tests."""
    items.sort(key=lambda item: item.get_closest_marker("study") is None)
    for item in items:
        if item.get_closest_marker("study") and not starts_ray(item.path):
            raise pytest.UsageError(f"{item.nodeid} is marked `study`, but its file does not say so")
        if TIME_SCALE != 1:
            own = item.get_closest_marker("timeout")
            seconds = own.args[0] if own else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(scaled(seconds)), append=False)
    if config.getoption("--no-skips"):
        _leave_out_larger_machines(config, items)


def _leave_out_larger_machines(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs more GPUs than this machine has, where each test that is skipped is a failure."""
    import torch

    larger = [item for item in items if _needed_gpus(item) > max(1, torch.cuda.device_count())]
    if larger:
        items[:] = [item for item in items if item not in larger]
        config.hook.pytest_deselected(items=larger)
        names = ", ".join(item.nodeid for item in larger)
        policy = config.pluginmanager.get_plugin("skip-policy")
        if policy is not None:  # of several processes the one that reports has it; the others collect
            policy.notes.append(f"left out, they need more GPUs: {names}")
        elif hasattr(config, "workeroutput"):
            config.workeroutput["left_out"] = names


def _needed_gpus(item: pytest.Item) -> int:
    """How many GPUs a test needs: the argument of its marker `gpu`, which is 1 unless given."""
    return max((marker.args[0] if marker.args else 1 for marker in item.iter_markers("gpu")), default=0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs more GPUs than there are."""
    needed = _needed_gpus(item)
    if needed:
        import torch

        available = torch.cuda.device_count()
        if available < needed:
            pytest.skip(GPU_SKIP.format(needed=needed, available=available))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return how tests are shared among processes.

    The tests of a file stay in one process, where they share their fixtures. Each study starts Ray on all cores, so
    all files that start one are a single group, and no two studies run at once.
    """
    from xdist.scheduler import LoadScopeScheduling

    parallel_studies = config.getoption("--parallel-studies")

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid, config.rootpath, parallel_studies)

    return ByFile(config, log)
