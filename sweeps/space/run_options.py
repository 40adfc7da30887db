"""The command line of `sweeps/run.py`, typed; loads quickly, and every package of sweeps may read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

AUTO = "auto"  # of gpus_per_trial
GpuSharing = Literal["processes", "mps", "auto"]
GPU_SHARING: tuple[str, ...] = get_args(GpuSharing)
START_WEIGHTS = "start.weights"  # the field that --weights sets
FOLDER_OPTIONS = ("data_dir", "teachers", "cache_dir")  # kept with a study, for its resumption


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the user has typed.

    Fields are None or empty where nothing was typed, but for those with a default.
    """

    space: str | None = None
    list: bool = False
    plan: bool = False
    probe_memory: bool = False
    resume: str | None = None
    test: bool = False
    repeat_more: int | None = None
    reproduce: Sequence[str] | None = None  # a study and a trial
    retrain_stopped: str | None = None
    sample: int = 10
    json: bool = False
    data: str | None = None
    data_dir: Path | None = None
    network: str | None = None
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    weights: str | None = None  # an absolute path
    set: Sequence[str] = ()
    name: str | None = None
    out: Path = Path("studies")
    seed: int | None = None
    trials: int | None = None
    time: str | None = None
    profile: bool = False
    note: str | None = None
    tag: Sequence[str] = ()
    group: str | None = None
    allow_code: bool = False
    gpus_per_trial: float | str | None = None
    sharing: str | None = None
    cpus_per_trial: float | None = None
    processes_per_trial: int | None = None
    max_concurrent: int | None = None
    address: str | None = None
    allow_open_ports: bool = False
    storage: str | None = None
    teachers: Path | None = None
    cache_dir: Path | None = None
    tracking_uri: str | None = None
    began: float = 0.0  # by sweeps.utils.clock.monotonic_time: when the command was given

    def field_updates(self) -> dict[str, Any]:
        """Return the fields of a space that options set, by dotted name.

        `search.time` is not among them.
        """
        updates = {
            "data.name": self.data, "network.name": self.network, "network.keep": list(self.keep) or None,
            "network.only": list(self.only) or None, START_WEIGHTS: self.weights,
            "search.seed": self.seed, "search.trials": self.trials,
            "resources.gpus_per_trial": self.gpus_per_trial, "resources.cpus_per_trial": self.cpus_per_trial,
            "resources.max_concurrent": self.max_concurrent,
            "resources.processes_per_trial": self.processes_per_trial, "resources.sharing": self.sharing,
        }  # fmt: skip
        return {name: value for name, value in updates.items() if value is not None}

    def with_folders(self, stored: dict[str, Any]) -> RunOptions:
        """Fill in the folders that the user has not typed.

        Args:
            stored: the folders as a study keeps them: texts or None, by option.

        Returns:
            The options with these folders.
        """
        folders: dict[str, Any] = {
            name: getattr(self, name) or (Path(stored[name]) if stored.get(name) else None) for name in FOLDER_OPTIONS
        }
        return replace(self, **folders)
