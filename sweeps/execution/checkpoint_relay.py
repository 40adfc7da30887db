"""Checkpoints on a cluster without a shared disk: workers hand them to the driver's machine, and ask for them there.

So a worker needs no rights at the storage and keeps nothing: its machine may vanish at any time. With a shared folder,
or on one machine, trials use the study's folder itself and none of this.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowrank.utils.atomic_write import write_bytes
from sweeps.records.names import CHECKPOINT_FILE, TRIALS_FOLDER

NAMESPACE = "sweeps"


class _Relay:
    """Lives beside the driver and alone touches the study's folder."""

    def __init__(self, study_dir: str):
        self._trials = Path(study_dir) / TRIALS_FOLDER

    def put(self, trial_id: str, content: bytes) -> None:
        """Keep a trial's checkpoint: the old one or this one, never half."""
        path = self._trials / trial_id / CHECKPOINT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)

    def get(self, trial_id: str) -> bytes | None:
        """A trial's checkpoint; None when there is none."""
        path = self._trials / trial_id / CHECKPOINT_FILE
        return path.read_bytes() if path.exists() else None


def start_relay(study_dir: Path) -> tuple[str, Any]:
    """Start the relay on this machine; returns the name that workers find it by, and the handle that keeps it alive."""
    name = f"relay {study_dir}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "name": name, "namespace": NAMESPACE, "scheduling_strategy": here}
    return name, ray.remote(_Relay).options(**options).remote(str(study_dir))


class CheckpointPlace:
    """Where a trial's process reads and writes its checkpoint; with a relay, a copy that lives as long as the trial."""

    def __init__(self, study_dir: str, trial_id: str, relay: str | None):
        self._trial_id = trial_id
        self._relay: Any = ray.get_actor(relay, NAMESPACE) if relay else None
        self._copy = tempfile.TemporaryDirectory(prefix="trial-") if relay else None
        self.folder = Path(self._copy.name if self._copy else Path(study_dir) / TRIALS_FOLDER / trial_id)
        self.path = self.folder / CHECKPOINT_FILE

    def fetch(self) -> None:
        """Make the checkpoint that the driver's machine has, if any, the one at `path`."""
        content: bytes | None = ray.get(self._relay.get.remote(self._trial_id)) if self._relay else None
        if content is not None:
            self.path.write_bytes(content)

    def carry(self) -> None:
        """Hand the checkpoint at `path` over; it is kept when this returns."""
        if self._relay:
            ray.get(self._relay.put.remote(self._trial_id, self.path.read_bytes()))
