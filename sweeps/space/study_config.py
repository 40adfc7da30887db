"""What the driver of a study needs beside the space: folders, addresses, limits and remarks of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StudyConfig:
    """What a driver needs beside the space."""

    name: str
    folder: Path
    data_dir: Path | None
    tracking_uri: str | None
    address: str | None
    gpus_asked: bool
    seconds: float | None
    teachers: Path
    cache_dir: Path | None
    note: str
    tags: dict[str, str]
    began: float  # by sweeps.utils.clock.monotonic_time: when the command was given
    profile: bool  # whether to say at the end where the time went
    storage: str | None = None  # a URI that the folder is carried to
    origin: dict[str, Any] | None = None  # of a repeat or a finish: which trials of which study
