"""What each trial holds of the cluster: checked before anything starts, spread over cards before cards are shared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel

from lowrank.errors import InputError
from lowrank.utils import first_line, format_counted, validate_model
from sweeps.space import AUTO, ResourceSettings

SMALLEST_SHARE = 0.01  # of a card; Ray's resource manager fails on much smaller ones
_EPSILON = 1e-9  # so that 1 / (1 / 3) counts as 3


@dataclass(frozen=True)
class Cluster:
    """CPUs and GPUs of all machines, and those of the largest machine."""

    cpus: float
    gpus: float
    max_cpus: float
    max_gpus: float


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


def read_cluster(*, autoscaled: bool) -> Cluster:
    """Read the size of the Ray cluster that this process is connected to.

    Args:
        autoscaled: whether the autoscaler of a head on this machine may start workers for this Ray; never for a Ray
            that the driver has started itself, although such a one has a head too.

    Returns:
        The machines that are alive or, on a head whose autoscaler may start more, all that it may start.

    Raises:
        InputError: the cluster file on this head is damaged.
    """
    # Ray takes long to import, and `--plan` needs no cluster
    from sweeps.cluster import BOOTSTRAP_FILE, HEAD_RESOURCE, is_driver_on, live_nodes

    nodes = live_nodes()
    resources: list[dict[str, float]] = [node["Resources"] for node in nodes]
    head = [node["Resources"] for node in nodes if is_driver_on(node) and HEAD_RESOURCE in node["Resources"]]
    planned = planned_machines(BOOTSTRAP_FILE.expanduser()) if head and autoscaled else []
    return _sum([*planned, *head] if planned and len(planned) + 1 >= len(nodes) else resources)


def planned_machines(path: Path) -> list[dict[str, float]]:
    """Read which workers a cluster file allows.

    `ray up` puts the file on the head. An idle cluster has no worker, and so no GPU, until Ray needs one.

    Args:
        path: the cluster file as Ray completes it.

    Returns:
        The resources of each worker (`CPU`, `GPU`), those with the most GPUs first; none if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        content = yaml.safe_load(path.read_text())
        file = validate_model(_ClusterFile, content if isinstance(content, dict) else {})
    except (OSError, ValueError, yaml.YAMLError, InputError) as error:
        raise InputError(
            f"{path}, which `ray up` has put here, is damaged: {first_line(error)}; run `ray up` again, or remove it"
        ) from error
    types = [machine for name, machine in file.available_node_types.items() if name != file.head_node_type]
    workers = [machine.resources or {} for machine in types for _ in range(machine.max_workers)]
    workers.sort(key=lambda resources: -resources.get("GPU", 0))
    return workers[: file.max_workers]


class _MachineType(BaseModel):
    """What a cluster file says of a type of machines."""

    resources: dict[str, float] | None = None
    max_workers: int = 0


class _ClusterFile(BaseModel):
    """What of a cluster file says how many machines there may be."""

    available_node_types: dict[str, _MachineType]
    head_node_type: str
    max_workers: int = 0


def _sum(nodes: Sequence[Mapping[str, float]]) -> Cluster:
    cpus, gpus = ([float(node.get(resource, 0)) for node in nodes] for resource in ("CPU", "GPU"))
    return Cluster(sum(cpus), sum(gpus), max(cpus, default=0.0), max(gpus, default=0.0))


def choose_share(
    cluster: Cluster, *, cpus: float, gpus: float, trials: int, require_gpus: bool = False,
    max_concurrent: int | None = None, processes: int | None = None,
) -> Share:  # fmt: skip
    """Choose what a trial gets on a cluster.

    A fraction of a card is raised if there are more cards than trials would fill, because Ray packs fractions: two
    trials of 0.5 share the first of two cards. A trial of several cards is trained by one process on each.

    Args:
        cluster: CPUs and GPUs there are.
        cpus: CPUs of one trial.
        gpus: GPUs of one trial; a fraction for a share of a card.
        trials: trials of the study, the most that can run at once.
        require_gpus: whether a cluster without GPUs is an error; else trials then run on CPUs.
        max_concurrent: trials at once where the user limits them.
        processes: that train one trial together on CPUs; None for one.

    Returns:
        The share of each trial.

    Raises:
        InputError: no machine could ever meet the request.
    """
    if gpus > 0 and cluster.gpus == 0 and not require_gpus:
        gpus = 0.0
    _check(cluster, cpus, gpus)
    slots = min(_slots(cluster, cpus, gpus), trials, max_concurrent or trials)
    if 0 < gpus < 1:
        per_card = math.ceil(slots / cluster.gpus)
        gpus = max(gpus, math.floor(100 / per_card) / 100)
    return Share(cpus, gpus, max(1, slots), _processes(gpus, processes))


def share_for(
    settings: ResourceSettings, cluster: Cluster, trials: int, require_gpus: bool, auto_gpus: float = 1.0
) -> Share:  # fmt: skip
    """Choose what a trial gets by the resources of a space; see `choose_share`.

    Args:
        settings: the `resources` of the space.
        cluster: CPUs and GPUs there are.
        trials: trials of the study.
        require_gpus: whether the command line asks for GPUs; `auto` does not.
        auto_gpus: GPUs of one trial that stand for `auto`: a whole card until they are measured.

    Returns:
        The share of each trial.

    Raises:
        InputError: no machine could ever meet the request.
    """
    auto = settings.gpus_per_trial == AUTO
    gpus = auto_gpus if isinstance(settings.gpus_per_trial, str) else settings.gpus_per_trial
    return choose_share(
        cluster, cpus=settings.cpus_per_trial, gpus=gpus, trials=trials, require_gpus=require_gpus and not auto,
        max_concurrent=settings.max_concurrent, processes=settings.processes_per_trial,
    )  # fmt: skip


def larger_share(share: Share, cluster: Cluster, trials: int) -> Share | None:
    """Choose the share for a second attempt of trials that ran out of memory.

    Args:
        share: the first attempt's.
        cluster: CPUs and GPUs there are.
        trials: trials of the study.

    Returns:
        Half as many trials on a card or, without cards, on a machine; None if a trial has a whole card or all CPUs of
        the largest machine already.
    """
    if share.gpus > 0:
        if share.gpus >= 1:
            return None
        gpus = 1 / max(1, math.floor(1 / share.gpus + _EPSILON) // 2)
        slots = min(_slots(cluster, share.cpus, gpus), trials)
        return Share(share.cpus, gpus, max(1, slots), share.processes)
    cpus = min(2 * share.cpus, cluster.max_cpus)
    if cpus <= share.cpus:
        return None
    return Share(cpus, 0.0, max(1, min(_slots(cluster, cpus, 0), trials)), share.processes)


def _processes(gpus: float, processes: int | None) -> int:
    cards = int(gpus) if gpus > 1 else 1
    if gpus > 0 and processes not in (None, cards):
        raise InputError(
            f"--processes-per-trial {processes} needs as many whole cards a trial, or none, but a trial has {gpus:g} "
            "GPU"
        )
    return cards if gpus > 0 else processes or 1


def _check(cluster: Cluster, cpus: float, gpus: float) -> None:
    if cpus > cluster.max_cpus:
        raise InputError(
            f"a trial asks for {format_counted(cpus, 'CPU')}, but the largest machine of the cluster has "
            f"{cluster.max_cpus:g}; choose --cpus-per-trial from 0.1 to {cluster.max_cpus:g}"
        )
    if gpus > cluster.max_gpus:
        raise InputError(
            f"a trial asks for {format_counted(gpus, 'GPU')}, but the largest machine of the cluster has "
            f"{cluster.max_gpus:g}; choose --gpus-per-trial from 0 to {cluster.max_gpus:g}"
        )
    if 0 < gpus < SMALLEST_SHARE or (gpus > 1 and gpus != int(gpus)):
        raise InputError(
            f"--gpus-per-trial must be 0, a share from {SMALLEST_SHARE:g} to 1, or a whole number, but got {gpus:g}"
        )


def _slots(cluster: Cluster, cpus: float, gpus: float) -> int:
    """Return how many trials of this size run at once."""
    by_cpu = math.floor(cluster.cpus / cpus + _EPSILON)
    if gpus == 0:
        return by_cpu
    by_gpu = cluster.gpus * math.floor(1 / gpus + _EPSILON) if gpus <= 1 else cluster.gpus // gpus
    return int(min(by_cpu, by_gpu))
