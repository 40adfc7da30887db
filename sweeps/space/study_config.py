"""What the driver of a study needs beside the space: folders, addresses, limits and notes of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StudyConfig:
    """The options of one run of a study's driver; all paths are absolute."""

    name: str
    folder: Path  # of the study
    data_dir: Path | None  # where data sets are found; None: the default
    tracking_uri: str | None  # of an MLflow server; None: SQLite in the study's folder
    address: str | None  # of a running Ray cluster; None: one is started on this machine
    gpus_asked: bool  # whether --gpus-per-trial was given, so that a cluster without GPUs is an error
    seconds: float | None  # time limit of this run
    teachers: Path  # folder of teachers
    cache_dir: Path | None  # of teacher caches; None: in the folder of studies
    note: str
    tags: dict[str, str]
    began: float  # when the command was given, by sweeps.utils.clock.monotonic_time
    profile: bool  # whether the run ends with a report of where the time went
    allow_open_ports: bool = False  # whether a Ray that is started here may answer without a token
    test: bool = False  # whether to look at the test split again if the study ends finished
    storage: str | None = None  # URI of the remote copy of the folder
    resumed: bool = False  # whether the study had begun before this run
    origin: dict[str, Any] | None = None  # the recorded trials that this study trains again, and their study
