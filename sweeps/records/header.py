"""The header of a study: what its driver wrote down before it trained anything.

It is checked where a journal, a table or MLflow's copy is read. Fields that this version does not know are handed on,
so that tables that are written again lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lowrank.utils import validate_model
from sweeps.records.specification import JsonObject
from sweeps.space import RetrainOrigin


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    def to_json(self) -> JsonObject:
        """Write the section as plain data, with the fields that were given and no others.

        Returns:
            What the journal holds.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class HeaderData(_Section):
    """The images of a study; older studies lack some of the fields.

    Attributes:
        name: of the data set, e.g. `digits` or `folder:/path`.
        fingerprint: of images and splits.
        classes: their number.
        image_shape: channels, height and width.
        train_images: number of training images.
        val_images: number of validation images.
        test_images: number of test images.
        class_names: in the order of their labels.
        notes: what was noticed when the images were read.
        class_counts: images of each class, by split.
    """

    name: str = ""
    fingerprint: str = ""
    classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    train_images: int | None = None
    val_images: int | None = None
    test_images: int | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    class_counts: dict[str, tuple[int, ...]] = {}


class HeaderNetwork(_Section):
    """The network of a study.

    Attributes:
        name: as in `NetworkSettings`, whose other fields are handed on.
        width: multiple of the inner channels.
    """

    name: str = ""
    width: float = 1.0


class HeaderTeacher(_Section):
    """The teacher of a study.

    Attributes:
        name: as messages show it.
        weights: hash of its weights.
        network: name of its network.
        val_error: percent.
        test_error: percent.
        params: its parameters.
    """

    name: str = ""
    weights: str | None = None
    network: str = ""
    val_error: float | None = None
    test_error: float | None = None
    params: int | None = None


class HeaderStratum(_Section):
    """A budget of a study.

    Attributes:
        label: e.g. `params <= 60,480`.
        params: its limit; None for no limit, or one on something else.
        unreachable: why no method of the space can meet it; empty where one can.
    """

    label: str
    params: int | float | None = None
    unreachable: str = ""


class HeaderHardware(_Section):
    """The machine of the driver.

    Attributes:
        host: its name.
        machine: its architecture.
        cpus: their number.
        gpus: their names; None where that is not on record.
    """

    host: str = ""
    machine: str = ""
    cpus: int | None = None
    gpus: tuple[str, ...] | None = None


class StudyHeader(_Section):
    """What a driver writes down when it begins.

    `StudyHeader()` is that of a study that has none.

    Attributes:
        name: of the study.
        time: when the driver began, seconds since the epoch.
        question: that the study answers.
        space: the content of its space file.
        data: its images.
        teacher: None where it has none.
        network: the dense network.
        references: parameters of the references by name.
        seed: of the search.
        strata: its budgets.
        versions: of Python and packages, by name.
        hardware: the driver's machine.
        commit: of the code.
        code: fingerprints of this project's packages and of the user's modules, by name.
        command: that began it.
        tracking_uri: of MLflow, without its password; None for a database in the study's folder.
        origin: the recorded trials that it trains again, if it does.
        collated: the studies that it was put together from.
        mixed: of a study that was put together, the fields in which its studies differ, with their values as JSON.
        test_looks: of a study that was put together, how often its studies had looked at the test split.
    """

    name: str = ""
    time: float | None = None
    question: str = ""
    space: dict[str, object] = {}
    data: HeaderData = HeaderData()
    teacher: HeaderTeacher | None = None
    network: HeaderNetwork = HeaderNetwork()
    references: dict[str, int] = {}
    seed: int | None = None
    strata: tuple[HeaderStratum, ...] = ()
    versions: dict[str, str] = {}
    hardware: HeaderHardware = HeaderHardware()
    commit: str | None = None
    code: dict[str, str] = {}
    command: str | None = None
    tracking_uri: str | None = None
    origin: RetrainOrigin | None = Field(default=None, validation_alias="repeats", serialization_alias="repeats")
    collated: tuple[str, ...] = ()
    mixed: dict[str, tuple[str, ...]] = {}
    test_looks: int = 0

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> StudyHeader:
        """Read and check a header.

        Args:
            content: plain data, as `to_json` gives it or a STUDY event holds it.

        Returns:
            The header.

        Raises:
            InputError: a field has a value of the wrong kind.
        """
        return validate_model(cls, content, "header")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on record."""
        return not self.model_fields_set

    @property
    def began(self) -> float:
        """When the driver began, seconds since the epoch; 0 where that is not on record."""
        return self.time or 0.0

    def code_changes(self, later: StudyHeader) -> list[str]:
        """Say what of the code has changed since this run of the driver; what only one of the two names says nothing.

        Args:
            later: of another run over the study.

        Returns:
            A clause for each change.
        """
        names = [name for name, value in later.code.items() if self.code.get(name, value) != value]
        commits = f" ({self.commit} -> {later.commit})" if self.commit != later.commit else ""
        changes = [f"the code of {', '.join(names)} has changed{commits}"] if names else []
        return changes + [
            f"{name} {self.versions[name]} -> {version}" for name, version in later.versions.items()
            if self.versions.get(name, version) != version
        ]  # fmt: skip

    def named(self, name: str) -> StudyHeader:
        """Return the header of the same study under another name.

        Args:
            name: the new one.

        Returns:
            The header.
        """
        return self.model_copy(update={"name": name})

    def section(self, name: str) -> Mapping[str, object]:
        """Return a section of the space, as its file has it.

        Args:
            name: of the section.

        Returns:
            Its fields; empty where the space has no such section.
        """
        content = self.space.get(name)
        return content if isinstance(content, dict) else {}
