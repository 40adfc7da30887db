"""Typed settings of a study: how it is searched, what a trial occupies and starts from, its budgets, its teacher."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lowrank.errors import InputError, show_value
from lowrank.utils import read_module_names, validate_model
from sweeps.space.domains import Value
from sweeps.space.run_options import AUTO, GpuSharing
from sweeps.utils import check_plain_name

TEACHER_SECTION = "teacher"
SEARCHABLE_FIELD = "views"  # the only field that may be a domain
START = "start"  # as `teacher.weights`: the network that trials start from, so that it teaches its smaller forms
TEACHER_WEIGHTS = ("attention_weight", "kd_weight")  # fields of the recipe; a teacher is used where one is above 0


def parse_time(text: str | None) -> float | None:
    """Parse a duration.

    Args:
        text: a number with s, m or h, such as `90s`; None for no limit.

    Returns:
        Seconds; None for None.

    Raises:
        InputError: the text has another form, or the duration is 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"a time must be a number above 0 with s, m or h (such as 30m), but got {show_value(text)}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


class SearchSettings(BaseModel):
    """How the space is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    trials: int = Field(default=24, ge=1)
    sampler: Literal["tpe", "nsga2", "gp", "random", "qmc", "grid"] = "tpe"
    order: Literal["shuffled", "longest_first"] = "shuffled"  # of a grid
    objectives: tuple[Literal["val_error", "params", "mult_adds"], ...] = ("val_error",)
    stop: Literal["none", "asha", "median", "hyperband"] = "asha"
    grace: float = Field(default=0.5, gt=0, le=1)  # share of the epochs before which no trial is stopped
    reduction: float = Field(default=3.0, gt=1)  # ASHA and HyperBand let the best 1 / reduction pass each rung
    brackets: int = Field(default=3, ge=1, le=16)  # of HyperBand; each begins one rung later than the one before
    repeats: int = Field(default=1, ge=1, le=1000)  # seeds of each point of a grid, or of the front at the end
    repeat_trials: int | None = Field(default=None, ge=0)  # the most repeats beyond the first front's; None: `trials`
    enqueue: tuple[dict[str, Value], ...] = ()  # points to try first: dotted name -> value
    warm_start: tuple[str, ...] = ()  # earlier studies, by name or folder, whose trials the sampler starts from
    seed: int = Field(default=0, ge=0, lt=2**63)
    time: str | None = None  # e.g. 90s, 30m, 2h

    @property
    def repeat_limit(self) -> int:
        """The most repeats of settings that came onto the front only by the repeats of others."""
        return self.trials if self.repeat_trials is None else self.repeat_trials

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        parse_time(self.time)
        if self.sampler == "grid" and (self.enqueue or self.warm_start):
            field = "enqueue" if self.enqueue else "warm_start"
            raise ValueError(f"`{field}` cannot be used with a grid, which trains every point whatever is known")
        if self.sampler != "grid" and self.order != "shuffled":
            raise ValueError(f"`order` is that of a grid, whose points are all known, but `sampler` is {self.sampler}")
        return self


class AnswerSettings(BaseModel):
    """What counts as an answer; nothing here changes a trial."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    margin: float | None = Field(default=None, gt=0, le=100)  # of "as good as", points; None: the smaller of 1 and 1/4


class ResourceSettings(BaseModel):
    """What one trial occupies while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    cpus_per_trial: float = Field(default=1.0, ge=0.1)
    gpus_per_trial: float | Literal["auto"] = 0.25  # used only where the cluster has GPUs; auto: measured
    sharing: GpuSharing = "auto"  # of a GPU; auto: the faster where shares are measured
    processes_per_trial: int | None = Field(default=None, ge=1)  # share each batch; None: one, or one for each GPU
    max_concurrent: int | None = Field(default=None, ge=1)
    checkpoint_seconds: float = Field(default=30.0, ge=0)  # between checkpoints, or an epoch where that is longer

    @field_validator("gpus_per_trial", mode="before")
    @classmethod
    def _check_share(cls, share: Any) -> Any:
        if share == AUTO or (isinstance(share, int | float) and not isinstance(share, bool) and share >= 0):
            return share
        raise ValueError("must be a number from 0, or auto")


LIMITS = ("params", "mult_adds", "bytes", "step_ms")  # what a budget may limit, in the order in which strata are made
FITTED_STARTS = (
    "outputs",
    "in_order",
    "in_order_relu",
)  # starts that fit factors to what layers give for calibration images
ALLOCATIONS_BY_ERROR = ("energy", "sensitivity")  # budgets shared out by what each layer's ranks cost in error


NETWORK_WEIGHTS = "network"  # as `start.weights`: those with which the network itself is built


class StartSettings(BaseModel):
    """The initial weights of trials: random, or from a trained dense network.

    `dense` takes the nearest weights, `outputs` those whose outputs are nearest to the trained layer's for
    `calibration` training images, `in_order` likewise with the inputs that the layers before it, already replaced,
    give, `in_order_relu` to what is left after a ReLU that follows. `weights` is the file of that network,
    or NETWORK_WEIGHTS for those that its builder returns; None takes the dense reference that the study trains.
    `scratch_train` are fields of the recipe of references that start from random weights in a space whose trials do
    not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    how: Literal["scratch", "dense", "outputs", "in_order", "in_order_relu"] = "scratch"
    weights: str | None = None
    calibration: int = Field(default=1024, ge=2)
    scratch_train: dict[str, object] | None = None


class BudgetSettings(BaseModel):
    """Limits on the whole network: shares of the counts of `relative_to` where that is set, else plain counts.

    `step_ms` is the time of one training step, measured on the driver's machine. `window` is the share of every upper
    limit that must be reached. `allocation` says among which groups of layers the budget is divided, `shares` how
    large their parts may be relative to each other. `energy` and `sensitivity` divide it by what each layer's ranks
    cost: in variance of the outputs, or in measured rise of the loss; `shares` then weigh the layers' errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    params: float | None = Field(default=None, gt=0)
    mult_adds: float | None = Field(default=None, gt=0)
    bytes: float | None = Field(default=None, gt=0)
    step_ms: float | None = Field(default=None, gt=0)
    params_min: float | None = Field(default=None, ge=0)
    mult_adds_min: float | None = Field(default=None, ge=0)
    bytes_min: float | None = Field(default=None, ge=0)
    window: float = Field(default=0.0, ge=0, le=1)
    relative_to: Literal["dense", "separable"] | None = None
    allocation: Literal["even", "stage", "layer", "energy", "sensitivity"] = "even"
    shares: float | None = Field(default=None, gt=0)  # a domain in every space; checked at its ends

    @model_validator(mode="after")
    def _check(self) -> BudgetSettings:
        for name in LIMITS:
            value, minimum = getattr(self, name), getattr(self, f"{name}_min", None)
            if self.relative_to is not None and value is not None and value > 1:
                raise ValueError(
                    f"a budget relative to {self.relative_to} is a share of at most 1, but got {value:g}; "
                    "for plain counts leave `relative_to` out"
                )
            if minimum is not None and value is not None and minimum > value:
                raise ValueError(f"`{name}.min` must be at most `{name}.max`, but got {minimum:g} and {value:g}")
        return self


class TeacherSettings(BaseModel):
    """Which teacher is distilled from, and how its outputs are obtained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = Field(default=None, min_length=1)  # a name in the folder of teachers, a file, torchvision:...
    weights: str | None = None  # any file of trained weights of `network` or of the space's own network, or START
    train: dict[str, object] | None = None  # fields of the recipe that trains it where no teacher has its name
    width: float | None = Field(default=None, gt=0, le=16)  # of the network of `weights`; None: the space's own
    network: str | None = None  # the network that it must be; needed where that is the user's own code
    views: int | None = Field(default=None, ge=1)  # augmented views of each image; None: new ones in every epoch
    cache: bool = True  # whether its outputs are kept on disk
    taps: tuple[str, ...] = ()  # modules whose feature maps are compared; (): the ends of its stages
    student_taps: tuple[str, ...] = ()
    unchecked: bool = False  # accept a teacher without a record of the images that it was trained on

    _module_names = field_validator("taps", "student_taps", mode="before")(read_module_names)


def parse_teacher(fields: Mapping[str, Any], domains: Iterable[str]) -> TeacherSettings | None:
    """Check the section `teacher`.

    Args:
        fields: its literals.
        domains: dotted names of all searched fields of the space.

    Returns:
        The settings; None for a space without a teacher.

    Raises:
        InputError: a field is unknown, out of range or may not be searched, or the teacher can be neither found nor
            trained.
    """
    searched = [name for name in domains if name.startswith(f"{TEACHER_SECTION}.")]
    for name in searched:
        if name != f"{TEACHER_SECTION}.{SEARCHABLE_FIELD}":
            raise InputError(f"`{name}` cannot be searched; of a teacher `{TEACHER_SECTION}.{SEARCHABLE_FIELD}` can")
    if not fields and not searched:
        return None
    settings = validate_model(TeacherSettings, fields, TEACHER_SECTION)
    if settings.weights is not None and (settings.name is not None or settings.train is not None):
        field = "name" if settings.name is not None else "train"
        raise InputError(f"`teacher.weights` is a teacher by itself; leave `teacher.{field}` out")
    if settings.name is None and settings.train is None and settings.weights is None:
        raise InputError(
            "`teacher` needs a `name` or a file of `weights`, or says under `train` how it is trained where it is not "
            "there yet"
        )
    if settings.name is not None and settings.train is not None:  # it becomes a folder among the teachers
        check_plain_name(settings.name, "`teacher.name` of a teacher that is trained")
    return settings
