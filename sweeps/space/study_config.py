"""What the driver of a study needs beside the space, and what of it space.yaml keeps for a resumption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from lowrank.utils import validate_model


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    def to_json(self) -> dict[str, JsonValue]:
        """Write the fields as plain data, those that were given and no others.

        Returns:
            What the file holds.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class RetrainOrigin(_Stored):
    """The recorded trials that a study trains again.

    Attributes:
        study: the folder of the study that has them on record.
        trial: id of the one trial that is reproduced; None for trials that were stopped early.
        new_trial: the id under which that one is trained.
        stopped: how many stopped trials were drawn from.
        finishes: ids of the stopped trials -> the ids under which they are trained.
    """

    study: str
    trial: str | None = None
    new_trial: str | None = Field(default=None, alias="as")
    stopped: int | None = None
    finishes: dict[str, str] | None = None

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> RetrainOrigin:
        """Read and check an origin.

        Args:
            content: plain data, as `to_json` gives it.

        Returns:
            The origin.

        Raises:
            InputError: a field is missing or has a value of the wrong kind.
        """
        return validate_model(cls, content, "repeats")

    @property
    def ids(self) -> dict[str, str]:
        """Ids in the recorded study -> ids in the study that trains the trials again."""
        if self.finishes is not None:
            return self.finishes
        return {self.trial: self.new_trial} if self.trial is not None and self.new_trial is not None else {}


class StoredOptions(_Stored):
    """The options that a study's space.yaml keeps for its resumption.

    Fields are None where nothing was typed.

    Attributes:
        space: name of the space.
        data_dir: the folder of data sets.
        tracking_uri: of an MLflow server, without its password.
        teachers: the folder of teachers.
        cache_dir: the folder of teacher caches.
        storage: URI of the remote copy of the study's folder.
        origin: the recorded trials that the study trains again, if it does.
    """

    space: str | None = None
    data_dir: str | None = None
    tracking_uri: str | None = None
    teachers: str | None = None
    cache_dir: str | None = None
    storage: str | None = None
    origin: RetrainOrigin | None = Field(default=None, validation_alias="repeats", serialization_alias="repeats")


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
    origin: RetrainOrigin | None = None  # the recorded trials that this study trains again, and their study
