"""The records of a study and its trials, folded from the events of its journal.

A study is its journal: one JSON object a line, appended by the driver alone. `apply_event` turns the events into
typed records, whatever was interrupted or repeated; `sweeps.records.tables` turns those into Arrow tables and back.

Units: errors are top-1 errors in percent; losses are means over samples; times are seconds since the epoch;
durations are seconds; parameters and mult-adds are plain counts, mult-adds for one image.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lowrank.errors import InputError
from sweeps.records.events import TERMINAL, Event, EventFields, Role, Status, TestLook
from sweeps.records.header import StudyHeader
from sweeps.records.names import INFEASIBLE_PREFIX, VAL_ERROR
from sweeps.records.specification import TrialSpec
from sweeps.space import UNCHANGED, Value
from sweeps.utils import check_plain_name

Handle = dict[str, str | int]  # of a proposal: the sampler's study and number, or the index in a grid
SPLITS = ("val", "test")  # on which trials are evaluated


def check_trial_id(trial_id: object) -> None:
    """Check the id of a trial, which a record of anybody's may hold, before it becomes part of a path.

    Args:
        trial_id: as the record has it. That of a point which was never launched lists the point's values.

    Raises:
        InputError: it is no plain name, or a path made of it could leave its folder.
    """
    if isinstance(trial_id, str) and trial_id.startswith(INFEASIBLE_PREFIX):
        if ".." in trial_id.split("/") or not trial_id.isprintable():
            raise InputError(f"a trial's id must not lead out of its folder, but got {trial_id!r}")
        return
    check_plain_name(trial_id, "a trial's id")


def parse_record_specification(content: Mapping[str, Any]) -> TrialSpec | None:
    """Read and check the specification of a record.

    Args:
        content: plain data, as a record of anybody's has it.

    Returns:
        The specification; None for {}, which a record without one has.

    Raises:
        InputError: it is damaged, or starts from a trial whose id could lead a path out of its folder.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"a specification must be a JSON object, but is {content!r}")
    if not content:
        return None
    specification = TrialSpec.parse(content)
    if specification.start is not None and specification.start.trial_id is not None:
        check_trial_id(specification.start.trial_id)
    return specification


@dataclass
class TrialRecord:
    """One specification and its results; equal specifications are one record."""

    trial_id: str
    role: Role = Role.SEARCH
    stratum: str = ""
    status: Status = Status.PROPOSED
    reason: str = ""
    parameters: dict[str, Value] = field(default_factory=dict)  # dotted name in the space file -> value
    aliases: list[dict[str, Value]] = field(default_factory=list)
    specification: TrialSpec | None = None  # None where the record has none: of an infeasible point, for example
    counts: dict[str, int] = field(default_factory=dict)
    proposal: Handle = field(default_factory=dict)  # the sampler's proposal that gets the outcome
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch (from 1) -> metrics, plus "time"
    attempts: list[EventFields] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    proposed_at: float | None = None
    finished_at: float | None = None
    test_error: float | None = None
    point_id: str = ""  # the trial's identity without its seed
    postponed: str = ""  # why it was put off to a larger share; empty for the others
    broken: str = ""  # why the user excluded it; empty for the others
    notes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    # After a start from trained weights, before any training: val_error (percent), val_loss, seconds, and layers: name,
    # weight_error and output_error of each (relative), of factors method and ranks too
    initial: EventFields = field(default_factory=dict)
    adopted: EventFields = field(default_factory=dict)  # study that trained it, its host ...; {}: this study did
    wrong_images: dict[str, str] = field(default_factory=dict)  # by split, see sweeps.records.image_errors
    # Of variational layers after the training: network (its settings with the channels that are left), threshold,
    # counts, alive (groups by layer), bits (by layer), masked, full_error, mixed_error
    removed: EventFields = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_trial_id(self.trial_id)

    @property
    def ended(self) -> bool:
        """Whether it will not be trained any further."""
        return self.status in TERMINAL or bool(self.broken)

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch on record; 0 before the first."""
        return max(self.epochs, default=0)

    @property
    def val_error(self) -> float | None:
        """Validation top-1 error (percent) after the last epoch on record; None before the first.

        Of a completed trial without epochs, which was only evaluated, it is the initial one.
        """
        if not self.epochs:
            return self.initial.get(VAL_ERROR) if self.status is Status.COMPLETED else None
        return self.epochs[self.last_epoch].get(VAL_ERROR)

    @property
    def built_specification(self) -> TrialSpec | None:
        """What was built in the end: of variational layers the plain network that is left; None without a record."""
        return None if self.specification is None else self.specification.built(self.removed)

    @property
    def initial_error(self) -> float | None:
        """Validation error (percent) before any training, of a start from trained weights; None where unknown."""
        return self.initial.get(VAL_ERROR)

    @property
    def total_epochs(self) -> int | None:
        """Its epochs and those of the network it starts from; None where the latter are not on record."""
        start = self.specification.start if self.specification else None
        if start is None:
            return self.last_epoch
        return None if start.epochs is None else self.last_epoch + start.epochs

    @property
    def seed(self) -> int | None:
        """Seed of initial weights and order; None where it is not on record."""
        return self.specification.seed if self.specification else None

    def last_attempt(self, field: str) -> Any:
        """Read a field of the newest attempt; of an adopted trial, of the study that trained it.

        Args:
            field: e.g. `host` or `device`.

        Returns:
            Its value; None where there was no attempt or it lacks the field.
        """
        return (self.attempts[-1] if self.attempts else self.adopted).get(field)

    @property
    def number_format(self) -> str | None:
        """The format in which it was computed; None where neither that nor the device is on record."""
        recorded = self.last_attempt("precision")
        return str(recorded) if recorded else resolve_number_format(self.specification, self.last_attempt("device"))

    @property
    def method(self) -> str:
        """The method's name, e.g. `tensor_train`; of a thinner network `thin_dense` or `thin_separable`.

        `unchanged` is the trained network itself that a study starts from.
        """
        proposed = str(self.parameters.get("method.name", ""))
        if proposed.startswith("thin_") or proposed == UNCHANGED:
            return proposed
        return self.specification.method.name if self.specification else proposed


def resolve_number_format(specification: TrialSpec | None, device: str | None) -> str | None:
    """Say in which format a trial computes.

    `precision: auto` is another format on a GPU than on a CPU, so that one id may stand for two computations.

    Args:
        specification: of the trial; None where it is not on record.
        device: kind of device, cpu or cuda; None where it is not known.

    Returns:
        float32, bfloat16 or float16; None where it is not known.
    """
    precision = specification.train.precision if specification else "auto"
    return {"cpu": "float32", "cuda": "bfloat16"}.get(device or "") if precision == "auto" else str(precision)


@dataclass
class StudyRecord:
    """A study as its journal records it; `trials` keeps the order of proposal."""

    header: StudyHeader = field(default_factory=StudyHeader)  # the newest STUDY event
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    closed: EventFields | None = None  # the newest CLOSED event; None while a driver runs or if it was killed
    packing: EventFields | None = None  # the newest PACKING event
    runs: list[EventFields] = field(default_factory=list)  # RESOURCES events, one a run, with the time it "closed"
    notes: list[str] = field(default_factory=list)  # the user's notes, oldest first
    tags: dict[str, str] = field(default_factory=dict)
    test_looks: list[TestLook] = field(default_factory=list)  # all looks of one run are one
    finished_ends: list[float] = field(default_factory=list)  # when a driver closed it as finished

    @property
    def has_completed(self) -> bool:
        """Whether a trial was trained to its end and is not marked as broken."""
        return any(trial.status is Status.COMPLETED and not trial.broken for trial in self.trials.values())

    @property
    def name(self) -> str:
        """The study's name."""
        return self.header.name


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause the search for unreachable cycles, which takes a fifth of the time while many records are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def apply_event(study: StudyRecord, event: Mapping[str, Any]) -> None:
    """Apply one journal event.

    Args:
        study: changed in place.
        event: as the journal holds it.

    Raises:
        InputError: the event is damaged: of an unknown kind, with a state that there is not, or without a field that
            its kind has.
    """
    try:
        _apply_event(study, event)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(describe_damage(event, error)) from error


def describe_damage(event: object, error: Exception) -> str:
    """Say what is wrong with an event that cannot be used.

    Args:
        event: as the journal holds it.
        error: raised by the code that used it.

    Returns:
        One line.
    """
    if not isinstance(event, Mapping):
        return f"it must be a JSON object, but is {event!r}"
    return f"it has no field {error}" if isinstance(error, KeyError) else str(error)


def _apply_event(study: StudyRecord, event: Mapping[str, Any]) -> None:
    if event["event"] == Event.EPOCH:  # first, because nearly all lines of a journal are epochs
        _epoch(_trial(study, event["trial"]), event)
        return
    kind = Event(event["event"])
    if kind is Event.STUDY:
        study.header, study.closed = StudyHeader.parse(event), None
        return
    if kind is Event.CLOSED:
        study.closed = dict(event)
        if event["reason"] == "finished" and event["time"] not in study.finished_ends:
            study.finished_ends.append(event["time"])
        if study.runs:
            study.runs[-1].setdefault("closed", event["time"])
        return
    if kind is Event.RESOURCES:
        recorded = [{key: run[key] for key in run if key not in ("closed", "decided_slots")} for run in study.runs]
        if dict(event) not in recorded:
            study.runs.append(dict(event))
        return
    if kind is Event.PACKING:
        study.packing = dict(event)
        if study.runs and "slots" in event:  # found while the trials of that run were training
            study.runs[-1]["decided_slots"] = event["slots"]
        return
    if kind is Event.ANNOTATED and "trial" not in event:
        _annotated(study, event)
        return
    if kind is Event.TESTED:
        _count_look(study, event["trial"])
    _APPLY[kind](_trial(study, event["trial"]), event)


def _count_look(study: StudyRecord, trial_id: str) -> None:
    run = study.header.time
    if not any(look["run"] == run for look in study.test_looks):
        study.test_looks.append({"run": run, "trials": []})
    look = next(look for look in study.test_looks if look["run"] == run)
    if trial_id not in look["trials"]:
        look["trials"].append(trial_id)


def count_test_looks(study: StudyRecord) -> int:
    """Count how often the test split was looked at.

    The test errors of one run of the driver are one look.

    Args:
        study: the records; of a study that was put together the looks of its studies count.

    Returns:
        The number; 0 also for tables of an older version, which do not have it.
    """
    return study.header.test_looks or len(study.test_looks)


def _trial(study: StudyRecord, trial_id: str) -> TrialRecord:
    trial = study.trials.get(trial_id)
    if trial is None:
        trial = study.trials[trial_id] = TrialRecord(trial_id=trial_id)
    return trial


def _proposed(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.role = Role(event["role"])
    trial.stratum = event["stratum"]
    trial.parameters = dict(event["parameters"])
    trial.specification = parse_record_specification(event["specification"])
    trial.counts = {name: int(count) for name, count in event["counts"].items()}
    trial.proposal = dict(event["proposal"])
    trial.point_id = event.get("point_id", "")
    trial.proposed_at = trial.proposed_at or event["time"]


def _alias(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    if event["parameters"] not in trial.aliases:
        trial.aliases.append(dict(event["parameters"]))


def _infeasible(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.status, trial.reason = Status.INFEASIBLE, event["reason"]
    trial.stratum, trial.parameters = event["stratum"], dict(event["parameters"])
    trial.proposed_at = trial.finished_at = event["time"]


def _attempt(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.adopted = {}  # this study trains it after all
    if trial.status not in TERMINAL:
        trial.status = Status.RUNNING
    attempt = {key: event[key] for key in event if key not in ("event", "trial")}
    if attempt not in trial.attempts:
        trial.attempts.append(attempt)


def _adopted(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.adopted = {key: event[key] for key in event if key not in ("event", "trial", "time")}


def _epoch(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.epochs[int(event["epoch"])] = {**intern_names(event["metrics"]), "time": event["time"]}


def intern_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """Copy metrics so that all epochs share one string for each name.

    Separate strings would take more memory than the values.

    Args:
        metrics: values by name.

    Returns:
        The copy.
    """
    return {sys.intern(name): value for name, value in metrics.items()}


def _initial(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.initial = dict(event["initial"])


def _notice(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    if event["text"] not in trial.notices:
        trial.notices.append(event["text"])


def _postponed(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    if trial.status not in TERMINAL:
        trial.status, trial.postponed = Status.PROPOSED, event["reason"]


def _finished(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.status, trial.reason = Status(event["status"]), event.get("reason", "")
    trial.finished_at = event["time"]
    if event.get("removed"):
        trial.removed = dict(event["removed"])
        trial.counts |= {name: int(count) for name, count in trial.removed["counts"].items()}
    _set_wrong_images(trial, "val", event)


def _tested(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.test_error = event["test_error"]
    _set_wrong_images(trial, "test", event)


def _set_wrong_images(trial: TrialRecord, split: str, event: Mapping[str, Any]) -> None:
    """Keep the wrong images of an event beside the error that they belong to; older events have none."""
    trial.wrong_images.pop(split, None)
    if event.get("wrong_images"):
        trial.wrong_images[split] = event["wrong_images"]


def _excluded(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.broken = event["broken"] or ""


def _annotated(record: TrialRecord | StudyRecord, event: Mapping[str, Any]) -> None:
    if event["note"] and event["note"] not in record.notes:
        record.notes.append(event["note"])
    record.tags.update(event["tags"])


_APPLY = {
    Event.PROPOSED: _proposed,
    Event.ALIAS: _alias,
    Event.INFEASIBLE: _infeasible,
    Event.ATTEMPT: _attempt,
    Event.ADOPTED: _adopted,
    Event.INITIAL: _initial,
    Event.NOTICE: _notice,
    Event.POSTPONED: _postponed,
    Event.FINISHED: _finished,
    Event.TESTED: _tested,
    Event.EXCLUDED: _excluded,
    Event.ANNOTATED: _annotated,
}
