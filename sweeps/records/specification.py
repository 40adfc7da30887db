"""A trial as its specification, and the id that says what is really built and trained.

`TrialSpec` is the one shape of a trial between the resolver and the tables. It is checked where a record is read; JSON
is only what the journal, the tables and MLflow hold.

Two settings that round to the same ranks are one trial: the id is a hash of the network that comes out, not of the
settings that were proposed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from lowrank.data import AugmentationSettings, DataSettings, absolute_data_name, check_data_folder
from lowrank.networks import ImageShape, NetworkSettings, check_own_code
from lowrank.training import Recipe
from lowrank.utils import validate_model
from sweeps.records.events import Role
from sweeps.records.names import TRIAL_WEIGHTS
from sweeps.space import Value, permissions_text

if TYPE_CHECKING:
    from lowrank.io import ModelSpecification

TEACHER_IDENTITY = frozenset(("weights", "taps", "student_taps", "views"))  # of the teacher, that make another trial
JsonObject = dict[str, JsonValue]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class MethodSection(BaseModel):
    """The settings of a method as a record has them.

    The method's own class, which needs torch, checks more than names and numbers.

    Attributes:
        name: of the method.
        dims: number of dimensions of tensor_train, tucker and cp.
        rank_scale: rank relative to the sizes.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    dims: int | None = None
    rank_scale: float | None = None

    def settings(self) -> JsonObject:
        """Return all settings, as `lowrank.layers.make_method` takes them.

        Returns:
            Plain data, as JSON holds it.
        """
        return self.model_dump(mode="json", exclude_unset=True)


class AllocationSection(_Section):
    """The method of each group of layers, where a budget is not shared evenly.

    Attributes:
        by: what makes a group, or what decides the ranks: `stage`, `layer`, `energy` or `sensitivity`.
        methods: by name of the group.
    """

    by: str
    methods: dict[str, MethodSection]

    def settings(self) -> dict[str, object]:
        """Return the grouping and the settings of all groups, as `NetworkPlan.sized` takes them.

        Returns:
            Plain data, as JSON holds it.
        """
        return {"by": self.by, "methods": {group: method.settings() for group, method in self.methods.items()}}


class DataSection(DataSettings):
    """The images of a trial.

    Attributes:
        name: as in `DataSettings`.
        fingerprint: of images and splits.
    """

    name: str
    fingerprint: str

    @property
    def data_settings(self) -> DataSettings:
        """What to load, whatever its fingerprint should be."""
        return DataSettings(**self.model_dump(exclude={"fingerprint"}, exclude_unset=True))


class StartSection(_Section):
    """The weights from which a trial starts.

    Attributes:
        source: a file, `TRIAL_WEIGHTS` with the id of a trial of this study, or that of the network's own weights.
        fingerprint: of the weights.
        how: in which way factors are fitted to outputs; None for the nearest weights.
        calibration: number of images for the fit.
        seed: draws these images.
        epochs: for which the weights were trained; None where that is not on record.
    """

    source: str = Field(alias="from")
    fingerprint: str
    how: str | None = None
    calibration: int | None = None
    seed: int | None = None
    epochs: int | None = None

    @property
    def kind(self) -> str:
        """`dense` for the nearest weights, else how factors are fitted."""
        return self.how or "dense"

    @property
    def trial_id(self) -> str | None:
        """Id of the trial of this study whose weights these are; None for those of a file or a network."""
        return self.trial_of(self.source)

    @staticmethod
    def trial_of(source: str) -> str | None:
        """Return the id of the trial that a source of weights names; None where it names none."""
        return source.removeprefix(TRIAL_WEIGHTS) if source.startswith(TRIAL_WEIGHTS) else None


ITSELF = "itself"  # name of a teacher that is the network which trials start from


class TeacherSection(_Section):
    """The teacher of a trial.

    Attributes:
        name: as messages show it.
        source: the file of its weights, or the name of its network.
        own_network: the network in the user's own code that its file may name.
        weights: hash of its weights.
        taps: its modules whose feature maps are compared.
        student_taps: those of the student.
        sizes: at which the feature maps of both are compared; in older records those of the teacher's maps.
        views: augmented views of each image; None for new ones in every epoch.
        network: of a file that does not say which network it is of.
    """

    name: str
    source: str | None = None
    own_network: str | None = None
    weights: str
    taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    views: int | None = None
    network: NetworkSettings | None = None


class BudgetSection(_Section):
    """Upper limits that are met after the training; None is no limit.

    Attributes:
        params: most parameters.
        mult_adds: most mult-adds for one image.
        bytes: most bytes of the weights as a safetensors file in float32.
    """

    params: int | None = None
    mult_adds: int | None = None
    bytes: int | None = None


class TrialSpec(_Section):
    """Everything that decides what a trial builds and trains.

    Attributes:
        network: the dense network.
        method: of the substituted layers.
        allocation: where layers differ in size.
        train: the recipe.
        views: augmentation of the training images.
        data: the images.
        seed: of initial weights and order.
        teacher: None where the recipe uses none.
        start: None where initial weights are random.
        budget: of a method whose size follows from training; None for others, whose sizes are in their settings.
    """

    network: NetworkSettings
    method: MethodSection
    allocation: AllocationSection | None = None
    train: Recipe
    views: AugmentationSettings
    data: DataSection
    seed: int
    teacher: TeacherSection | None = None
    start: StartSection | None = None
    budget: BudgetSection | None = None

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> TrialSpec:
        """Read and check a specification.

        Args:
            content: plain data, as `to_json` gives it.

        Returns:
            The specification; `to_json` gives the same data again.

        Raises:
            InputError: a section is missing, or a field or value is not allowed.
        """
        return validate_model(cls, content, "specification")

    def to_json(self) -> JsonObject:
        """Write the specification as plain data, with the fields that were given and no others.

        Returns:
            What the journal holds.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    @property
    def cache_epochs(self) -> int:
        """Epochs of which a teacher's outputs differ: they are the same again with every view of an image."""
        views = self.teacher.views if self.teacher else None
        return views or self.train.epochs

    def with_train(self, **fields: Any) -> TrialSpec:
        """Change fields of the recipe.

        Args:
            **fields: new values.

        Returns:
            The changed specification.

        Raises:
            InputError: the recipe does not allow them.
        """
        recipe = validate_model(Recipe, {**self.train.model_dump(exclude_unset=True), **fields}, "train")
        return self.model_copy(update={"train": recipe})

    def model(self, image_shape: ImageShape, classes: int) -> ModelSpecification:
        """Describe the model that is built, as its file does.

        Args:
            image_shape: channels, height and width of the data set's images.
            classes: of the data set.

        Returns:
            What plans and counts it.

        Raises:
            InputError: the specification names what this code does not have.
        """
        from lowrank.io import ModelSpecification  # imports torch, which readers of records do without
        from lowrank.layers import make_method

        return ModelSpecification(
            network=self.network, method=make_method(self.method.settings()),
            allocation=self.allocation.settings() if self.allocation else None,
            image_shape=image_shape, classes=classes,
        )  # fmt: skip

    def built(self, removed: Mapping[str, Any]) -> TrialSpec:
        """Describe the plain network that is left of a variational one.

        Args:
            removed: as a record has it; its `network` holds the settings with the channels that are left. {} for a
                trial of any other method.

        Returns:
            The specification of that network; this one where nothing was removed.

        Raises:
            InputError: the settings are damaged.
        """
        if not removed:
            return self
        network = validate_model(NetworkSettings, removed["network"], "network")
        return self.model_copy(update={"network": network, "method": MethodSection(name="dense"), "budget": None})

    def networks(self) -> list[str]:
        """List the networks that are made for the trial.

        Returns:
            The names of its own and, where the specification says it, its teacher's.
        """
        teacher = self.teacher
        names = [self.network.name]
        if teacher is not None:
            names += [name for name in (teacher.own_network, teacher.network and teacher.network.name) if name]
        return names

    def permission_options(self) -> str:
        """Return the options that must be typed to train the trial again from its record.

        Returns:
            `--allow-code` and `--data SET`, each with a space before it; empty where the record needs no permission.
        """
        return permissions_text(self.networks(), self.data.name)


@dataclass(frozen=True)
class Trial:
    """A specification that can be trained, with its exact counts."""

    trial_id: str
    role: Role
    stratum: str
    point: dict[str, Value]
    specification: TrialSpec
    counts: dict[str, int]
    point_id: str = ""  # the same for repeats, which differ in nothing but the seed
    same_training: str | None = None  # id of the trial that trains the same posterior for another budget

    @property
    def depends_on(self) -> str | None:
        """Id of the trial of this study whose weights this one takes or starts from; None where there is none.

        A trial that takes another's posterior waits for that one alone, which has waited for its own start.
        """
        start = self.specification.start
        return self.same_training or (None if start is None else start.trial_id)


def identify(specification: TrialSpec, image_shape: ImageShape, classes: int) -> tuple[str, str]:
    """Compute the ids of a recorded specification by what today's code builds.

    It makes no tensor.

    Args:
        specification: of the trial.
        image_shape: channels, height and width of the data set's images.
        classes: of the data set.

    Returns:
        The id of the trial and that of its point.

    Raises:
        InputError: the specification names what this code does not have.
    """
    model = specification.model(image_shape, classes)
    plan = model.plan()
    return trial_ids(specification, plan.signature(model.sized(plan)))


def trial_ids(specification: TrialSpec, signature: Any) -> tuple[str, str]:
    """Compute the ids of a trial and of its point, the trial without its seed.

    Args:
        specification: of the trial.
        signature: what `NetworkPlan.signature` says is built.

    Returns:
        Two hashes of 12 hexadecimal digits.
    """
    built = _identity(specification, signature)
    return _hash(built), _hash({key: value for key, value in built.items() if key != "seed"})


def _identity(specification: TrialSpec, signature: Any) -> Mapping[str, object]:
    """What makes another trial: what is built and trained, wherever images, weights and teacher are stored."""
    sections = specification.to_json()
    identity: dict[str, object] = {
        key: value for key, value in sections.items() if key not in ("allocation", "teacher", "start")
    }
    identity |= {
        "train": specification.train.identity(), "method": signature, "data": specification.data.fingerprint
    }  # fmt: skip
    if (start := specification.start) is not None:
        fit = start.model_dump(mode="json", include={"how", "calibration", "seed"}, exclude_unset=True)
        identity["start"] = {**fit, "fingerprint": start.fingerprint} if fit else start.fingerprint
    if specification.teacher is not None:
        identity["teacher"] = specification.teacher.model_dump(mode="json", include=set(TEACHER_IDENTITY))
    return identity


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def check_specifications(
    specifications: Iterable[TrialSpec | None], *, allow_code: bool, source: str, data_dir: Path | None = None,
    typed_data: str | None = None,
) -> None:  # fmt: skip
    """Check the networks and images that recorded specifications name.

    It comes before any is made or read.


    Args:
        specifications: of trials, as a record of anybody's has them; None where there is none.
        allow_code: whether they may name networks in the user's own code.
        source: what has them, for the message.
        data_dir: the folder of data sets that the user has typed; None for the default.
        typed_data: the data set that the user has typed, which may lie anywhere.

    Raises:
        InputError: one names code, or images outside of the folder of data sets, and may not.
    """
    on_record = [specification for specification in specifications if specification is not None]
    names = (name for specification in on_record for name in specification.networks())
    check_own_code(names, allow_code, source=source)
    for name in sorted({specification.data.name for specification in on_record}):
        if typed_data is None or absolute_data_name(name) != absolute_data_name(typed_data):
            check_data_folder(name, data_dir, source)
