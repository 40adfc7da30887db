"""What each trial holds of the cluster: checked before anything starts, spread over cards before it is packed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import yaml

from lowrank.errors import InputError
from sweeps.space.settings import AUTO, ResourceSettings

SMALLEST_SHARE = 0.01  # of a card; Ray's resource manager fails on much smaller ones
HEAD = "node:__internal_head__"  # the resource by which Ray marks the head
BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")  # the cluster file as `ray up` leaves it on the head


@dataclass(frozen=True)
class Cluster:
    """CPUs and GPUs, in all and on the largest machine."""

    cpus: float
    gpus: float
    most_cpus: float
    most_gpus: float


@dataclass(frozen=True)
class Share:
    """What one trial holds, and how many trials run at once."""

    cpus: float
    gpus: float
    concurrent: int
    processes: int = 1  # that train one trial together

    def __str__(self) -> str:
        together = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{self.cpus:g} CPU and {self.gpus:g} GPU{together}"


def read_cluster() -> Cluster:
    """The machines of the connected Ray cluster: those alive, or where its autoscaler may start more, all of these."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes: list[dict[str, float]] = [node["Resources"] for node in alive]
    own = ray.get_runtime_context().get_node_id()
    head = [node["Resources"] for node in alive if node["NodeID"] == own and HEAD in node["Resources"]]
    planned = planned_machines(BOOTSTRAP_FILE.expanduser()) if head else []
    return _sum([*planned, *head] if len(planned) + 1 >= len(nodes) and planned else nodes)


def planned_machines(path: Path) -> list[dict[str, float]]:
    """Resources of the workers that a cluster file allows, those with the most GPUs first; none where there is no file.

    Ray's `ray up` puts the file on the head. A cluster that is idle has no worker, and so no GPU, until it is asked.
    """
    if not path.exists():
        return []
    config = yaml.safe_load(path.read_text())
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    each = [kind.get("resources") or {} for kind in kinds for _ in range(kind.get("max_workers", 0))]
    each.sort(key=lambda resources: -resources.get("GPU", 0))
    return each[: config.get("max_workers", 0)]


def _sum(nodes: Sequence[Mapping[str, float]]) -> Cluster:
    cpus, gpus = ([float(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    return Cluster(sum(cpus), sum(gpus), max(cpus, default=0.0), max(gpus, default=0.0))


def choose_share(
    cluster: Cluster, *, cpus: float, gpus: float, trials: int, gpus_asked: bool = False, most: int | None = None,
    processes: int | None = None,
) -> Share:  # fmt: skip
    """What a trial gets on this cluster; raises InputError for a request that no machine could ever meet.

    A fraction of a card is raised when there are more cards than trials would fill, because Ray packs fractions: two
    trials of 0.5 share the first of two cards. Without GPUs in the cluster trials run on CPUs, unless GPUs were asked
    for on the command line (`gpus_asked`). A trial of several cards is trained by as many processes, one on CPUs by
    `processes` (one where that is None).
    """
    if gpus > 0 and cluster.gpus == 0 and not gpus_asked:
        gpus = 0.0
    _check(cluster, cpus, gpus)
    slots = min(_slots(cluster, cpus, gpus), trials, most or trials)
    if 0 < gpus < 1:
        per_card = math.ceil(slots / cluster.gpus)
        gpus = max(gpus, math.floor(100 / per_card) / 100)
    return Share(cpus, gpus, max(1, slots), _processes(gpus, processes))


def share_of(
    asked: ResourceSettings, cluster: Cluster, trials: int, gpus_asked: bool, measured: float = 1.0
) -> Share:  # fmt: skip
    """`choose_share` by a space's resources; `measured` is the share that stands for auto, first a whole card."""
    auto = asked.gpus_per_trial == AUTO
    gpus = measured if isinstance(asked.gpus_per_trial, str) else asked.gpus_per_trial
    return choose_share(
        cluster, cpus=asked.cpus_per_trial, gpus=gpus, trials=trials, gpus_asked=gpus_asked and not auto,
        most=asked.max_concurrent, processes=asked.processes_per_trial,
    )  # fmt: skip


def larger(share: Share, cluster: Cluster, trials: int) -> Share | None:
    """Half as many trials on a card, or on a machine of CPUs alone: for those that ran out of memory.

    None where a trial has a whole card, or so many CPUs, already.
    """
    if share.gpus > 0:
        if share.gpus >= 1:
            return None
        gpus = 1 / max(1, math.floor(1 / share.gpus + 1e-9) // 2)
        slots = min(_slots(cluster, share.cpus, gpus), trials)
        return Share(share.cpus, gpus, max(1, slots), share.processes)
    cpus = min(2 * share.cpus, cluster.most_cpus)
    if cpus <= share.cpus:
        return None
    return Share(cpus, 0.0, max(1, min(_slots(cluster, cpus, 0), trials)), share.processes)


def _processes(gpus: float, asked: int | None) -> int:
    cards = int(gpus) if gpus > 1 else 1
    if gpus > 0 and asked not in (None, cards):
        raise InputError(
            f"--processes-per-trial {asked} needs as many whole cards a trial, or none, but a trial has {gpus:g} GPU"
        )
    return cards if gpus > 0 else asked or 1


def _check(cluster: Cluster, cpus: float, gpus: float) -> None:
    if cpus > cluster.most_cpus:
        raise InputError(
            f"a trial asks for {cpus:g} CPUs, but the largest machine of the cluster has {cluster.most_cpus:g}; "
            f"choose --cpus-per-trial from 0.1 to {cluster.most_cpus:g}"
        )
    if gpus > cluster.most_gpus:
        raise InputError(
            f"a trial asks for {gpus:g} GPUs, but the largest machine of the cluster has {cluster.most_gpus:g}; "
            f"choose --gpus-per-trial from 0 to {cluster.most_gpus:g}"
        )
    if 0 < gpus < SMALLEST_SHARE or (gpus > 1 and gpus != int(gpus)):
        raise InputError(
            f"--gpus-per-trial must be 0, a share from {SMALLEST_SHARE:g} to 1, or a whole number, but got {gpus:g}"
        )


def _slots(cluster: Cluster, cpus: float, gpus: float) -> int:
    by_cpu = math.floor(cluster.cpus / cpus + 1e-9)
    if gpus == 0:
        return by_cpu
    by_gpu = cluster.gpus * math.floor(1 / gpus + 1e-9) if gpus <= 1 else cluster.gpus // gpus
    return int(min(by_cpu, by_gpu))
