"""Checkpoints on a cluster without a shared disk: an actor on the driver's machine stores and returns them.

So a worker needs no rights at the storage and stores nothing itself: its machine may vanish at any time. With a shared
folder, or on one machine, trials use the study's folder itself and no relay.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowrank.utils import write_bytes
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER

NAMESPACE = "sweeps"


class _Relay:
    """Runs beside the driver; no other actor touches the study's folder."""

    def __init__(self, study_dir: str):
        self._trials = Path(study_dir) / TRIALS_FOLDER

    def put(self, trial_id: str, content: bytes) -> None:
        """Replace a trial's checkpoint; after a power cut the old one or this one is there."""
        path = self._trials / trial_id / CHECKPOINT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)

    def get(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint; None if there is none."""
        path = self._trials / trial_id / CHECKPOINT_FILE
        return path.read_bytes() if path.exists() else None


def start_relay(study_dir: Path) -> tuple[str, Any]:
    """Start the relay on this machine.

    Args:
        study_dir: folder of the study.

    Returns:
        The name by which workers find it, and the actor's handle, which keeps it alive.
    """
    name = f"relay {study_dir}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "name": name, "namespace": NAMESPACE, "scheduling_strategy": here}
    return name, ray.remote(_Relay).options(**options).remote(str(study_dir))


class CheckpointLocation:
    """Where a trial's process reads and writes its checkpoint.

    With a relay that is a temporary copy, which exists as long as the object.
    """

    def __init__(self, study_dir: str, trial_id: str, relay: str | None):
        """Find the place; nothing is read.

        Args:
            study_dir: folder of the study.
            trial_id: the trial.
            relay: the relay's name; None if this machine sees the study's folder.
        """
        self._trial_id = trial_id
        self._relay: Any = ray.get_actor(relay, NAMESPACE) if relay else None
        self._copy = tempfile.TemporaryDirectory(prefix="trial-") if relay else None
        folder = Path(self._copy.name if self._copy else Path(study_dir) / TRIALS_FOLDER / trial_id)
        self.path = folder / CHECKPOINT_FILE

    def download(self) -> None:
        """Copy the checkpoint that the relay has, if any, to `path`; without a relay it is there already."""
        content: bytes | None = ray.get(self._relay.get.remote(self._trial_id)) if self._relay else None
        if content is not None:
            self.path.write_bytes(content)

    def upload(self) -> None:
        """Give the checkpoint at `path` to the relay, if there is one; it is stored when this returns."""
        if self._relay:
            ray.get(self._relay.put.remote(self._trial_id, self.path.read_bytes()))
