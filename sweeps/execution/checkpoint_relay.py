"""Checkpoints on a cluster without a shared disk: an actor on the driver's machine stores and returns them.

A worker therefore needs no access to the study's storage, and no checkpoint is lost when its machine disappears. With a
shared folder, or on one machine, trials use the study's folder itself and no relay.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lowrank.io import remove_set_aside, saved_versions, set_aside, shift_versions
from lowrank.utils import atomic_path, sync
from sweeps.records import CHECKPOINT_FILE, TRIALS_FOLDER

NAMESPACE = "sweeps"  # Ray's namespace of the named actor
CALL_SECONDS = 300.0  # for which a trial waits for the relay: the time to send a large checkpoint over a slow network
CALL_RETRIES = 3  # of a call whose relay was lost; Ray starts the relay again


class _Relay:
    """The actor on the driver's machine; the only one that reads and writes checkpoints in the study's folder."""

    def __init__(self, study_dir: str):
        self._trials = Path(study_dir) / TRIALS_FOLDER

    def put(self, trial_id: str, content: bytes, versions: int) -> None:
        """Store a trial's newest checkpoint atomically; of the earlier ones `versions - 1` stay.

        A power failure leaves either the old or the new one. A call that Ray repeats, because the relay was lost before
        it could answer, changes nothing.
        """
        path = self._path(trial_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
                sync(temporary)
                shift_versions(path, versions)
        for older in saved_versions(path)[versions:]:
            older.unlink()
        if versions == 1:  # of a trial that has ended
            remove_set_aside(path)

    def get(self, trial_id: str) -> dict[str, bytes]:
        """Return a trial's checkpoints by file name, the newest first; empty if there is none."""
        return {path.name: path.read_bytes() for path in saved_versions(self._path(trial_id))}

    def set_aside(self, trial_id: str, name: str) -> str | None:
        """Rename a checkpoint that cannot be used; returns its new name, None if it is renamed already."""
        path = self._path(trial_id).with_name(name)
        return set_aside(path).name if path.exists() else None

    def _path(self, trial_id: str) -> Path:
        return self._trials / trial_id / CHECKPOINT_FILE


def start_relay(study_dir: Path) -> tuple[str, Any]:
    """Start the relay on this machine; Ray starts it again when its process is lost.

    Args:
        study_dir: folder of the study.

    Returns:
        The actor's name, for `CheckpointLocation`, and its handle. Ray ends the actor when the handle is dropped.
    """
    name = f"relay {study_dir}"
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "num_cpus": 0, "name": name, "namespace": NAMESPACE, "scheduling_strategy": this_node,
        "max_restarts": -1, "max_task_retries": CALL_RETRIES,
    }  # fmt: skip
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
        """Write the relay's checkpoints, if it has any, beside `path`; without a relay do nothing.

        Raises:
            OSError: the relay is lost or does not answer.
        """
        if self._relay:
            for name, content in self._call("get").items():
                self.path.with_name(name).write_bytes(content)

    def upload(self, versions: int) -> None:
        """Send the checkpoint at `path` to the relay and wait until it is stored; without a relay do nothing.

        Args:
            versions: how many checkpoints the relay keeps, this one among them.

        Raises:
            OSError: the relay is lost or does not answer, or its disk is full.
        """
        if self._relay:
            self._call("put", self.path.read_bytes(), versions)

    def set_aside(self, path: Path) -> str:
        """Rename a checkpoint that cannot be used, in the study's folder too.

        Args:
            path: the file, `path` of this object or one beside it.

        Returns:
            The new name of the file in the study's folder.

        Raises:
            OSError: the file cannot be renamed, or the relay is lost or does not answer.
        """
        stored = self._call("set_aside", path.name) if self._relay else None
        local = set_aside(path).name
        return stored or local

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call the relay; raises OSError if it is lost, so that a checkpoint fails as on a disk that is not there."""
        try:
            return ray.get(getattr(self._relay, method).remote(self._trial_id, *arguments), timeout=CALL_SECONDS)
        except GetTimeoutError as error:
            raise OSError(f"the checkpoint relay has not answered for {CALL_SECONDS:.0f} s") from error
        except RayActorError as error:
            raise OSError("the checkpoint relay on the driver's machine is lost") from error
