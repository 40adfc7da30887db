"""Clusters of several raylets on this machine, each of which can be killed as a machine is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.environment import changed_environment
from tests.support.processes import child_pids, command_line, is_running
from tests.support.ray_private import forget_default_cluster
from tests.support.waiting import wait_until

MACHINES = 2  # beside the head, which trains nothing


class Machines:
    """A head and workers of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quiet = {"include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
        forget_default_cluster()  # else other programs of this machine that start Ray would join
        self.address: str = self._cluster.address
        self.workers: list[Any] = []
        for _ in range(MACHINES):
            self.add()

    def add(self) -> None:
        """A further machine joins."""
        self.workers.append(self._cluster.add_node(num_cpus=1, include_dashboard=False))

    def kill(self, machine: Any) -> None:
        """SIGKILL for the raylet of a worker; its other processes go with it."""
        self.workers.remove(machine)
        _kill(machine, "raylet")

    def kill_head(self) -> None:
        """SIGKILL for everything that runs on the head, except a driver."""
        _kill(self._cluster.head_node, *self._cluster.head_node.all_processes)

    def worker_pids(self) -> list[int]:
        """Return the processes in which tasks and trials run."""
        nodes = [*self.workers, self._cluster.head_node]
        raylets = [each.process.pid for node in nodes for each in node.all_processes.get("raylet", [])]
        return [pid for raylet in raylets for pid in child_pids(raylet) if command_line(pid).startswith("ray::")]

    def end(self) -> None:
        """Stop what is left, and wait for it."""
        for node in [*self.workers, self._cluster.head_node]:
            _kill(node, *node.all_processes)


def _kill(node: Any, *kinds: str) -> None:
    for kind in kinds:
        for each in node.all_processes.get(kind, []):
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGKILL)
                each.process.wait()


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster until the block ends."""
    with changed_environment({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}):
        cluster = Machines()
        try:
            yield cluster
        finally:
            workers = cluster.worker_pids()
            cluster.end()
            wait_until(
                lambda: not any(is_running(pid) for pid in workers), "the processes of trials to miss their raylet"
            )
