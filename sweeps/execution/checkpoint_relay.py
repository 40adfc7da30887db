"""Checkpoints on a cluster without a shared disk: an actor on the driver's machine stores and returns them.

A worker therefore needs no access to the study's storage, and no checkpoint is lost when its machine disappears. With a
shared folder, or on one machine, trials use the study's folder itself and no relay.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowrank.utils import write_bytes
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER

NAMESPACE = "sweeps"  # Ray's namespace of the named actor


class _Relay:
    """The actor on the driver's machine; the only one that reads and writes checkpoints in the study's folder."""

    def __init__(self, study_dir: str):
        self._trials = Path(study_dir) / TRIALS_FOLDER

    def put(self, trial_id: str, content: bytes) -> None:
        """Replace a trial's checkpoint atomically: a power failure leaves either the old or the new one."""
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
        The actor's name, for `CheckpointLocation`, and its handle. Ray ends the actor when the handle is dropped.
    """
    name = f"relay {study_dir}"
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "name": name, "namespace": NAMESPACE, "scheduling_strategy": this_node}
    return name, ray.remote(_Relay).options(**options).remote(str(study_dir))


class CheckpointLocation:
    """Where a trial's process reads and writes its checkpoint.

    With a relay, `path` is in a temporary folder, which is deleted with this object. `download` the checkpoint before
    reading it and `upload` it after writing.
    """

    def __init__(self, study_dir: str, trial_id: str, relay: str | None):
        """Find the relay and set `path`; no checkpoint is read.

        Args:
            study_dir: folder of the study.
            trial_id: the trial.
            relay: the relay's name, from `start_relay`; None if this machine can read the study's folder.

        Raises:
            ValueError: no actor has the relay's name.
        """
        self._trial_id = trial_id
        self._relay: Any = ray.get_actor(relay, NAMESPACE) if relay else None
        self._temporary = tempfile.TemporaryDirectory(prefix="trial-") if relay else None
        folder = Path(self._temporary.name if self._temporary else Path(study_dir) / TRIALS_FOLDER / trial_id)
        self.path = folder / CHECKPOINT_FILE

    def download(self) -> None:
        """Write the relay's checkpoint, if it has one, to `path`; without a relay do nothing."""
        content: bytes | None = ray.get(self._relay.get.remote(self._trial_id)) if self._relay else None
        if content is not None:
            self.path.write_bytes(content)

    def upload(self) -> None:
        """Send the checkpoint at `path` to the relay and wait until it is stored; without a relay do nothing."""
        if self._relay:
            ray.get(self._relay.put.remote(self._trial_id, self.path.read_bytes()))
