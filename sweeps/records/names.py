"""Names and records of everything that a study keeps. `analysis` imports this module and its tables, fronts and names.

A study is its journal: one JSON object a line, appended by the driver alone. `fold` turns the events into typed
records, whatever was interrupted or repeated; `sweeps.records.tables` turns those into Arrow tables and back.

Units: errors are top-1 errors in percent; losses are means over samples; times are seconds since the epoch;
durations are seconds; parameters and mult-adds are plain counts, mult-adds for one image.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lowrank.errors import InputError

JOURNAL_FILE = "journal.jsonl"
RESULTS_FILE = "results.parquet"
EPOCHS_FILE = "epochs.parquet"
SPACE_FILE = "space.yaml"
SERIES_FILE = "series.yaml"  # in the folder of a series: what was asked, its own content and options
LOCK_FILE = "driver.lock"
PROGRESS_FILE = "tracking.json"  # what MLflow has accepted
LOG_FILE = "tracking.log"
MLFLOW_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlflow_artifacts"
TRIALS_FOLDER = "trials"
CHECKPOINT_FILE = "checkpoint.safetensors"  # in TRIALS_FOLDER / trial id
FRONT_PICTURE = "front.png"
SUMMARY_TABLE = "summary.csv"
REPORT_FOLDER = "report"
MODELS_FOLDER = "models"  # the front's weights with all that it takes to use them, one folder a trial
LONGEST_NOTE = 2000  # characters; MLflow keeps 8,000 in a tag, and several notes go into one
OWN_TAGS = frozenset({
    "study", "study_key", "trial_id", "point", "role", "stratum", "status", "reason", "attempts", "aliases", "adopted",
    "broken",
    "data", "network", "question", "commit", "command", "seed", "hardware", "host", "device", "artifacts_complete",
    "tables",
})  # fmt: skip
TAG_RULE = r"[A-Za-z][A-Za-z0-9_-]{0,79}"


VAL_ERROR = "val_error"
# Of every epoch, where it applies; errors in percent, losses as means over samples (see docs/training.md)
EPOCH_METRICS = (
    VAL_ERROR, "val_loss", "train_error", "train_loss", "lr", "images_per_second", "epoch_seconds", "val_error_top5",
    "loss_cross_entropy", "loss_kd", "loss_attention", "loss_auxiliary", "prediction_spread", "grad_norm",
    "loss_scale", "skipped_steps", "peak_device_mb", "device_utilisation", "host_memory_mb",
    "input_seconds", "compile_seconds", "eval_seconds", "report_seconds",
)  # fmt: skip
# Those of them that tell of the machine rather than of the training
MACHINE_METRICS = frozenset(
    {
        "images_per_second", "epoch_seconds", "peak_device_mb", "device_utilisation", "host_memory_mb",
        "input_seconds", "compile_seconds", "eval_seconds", "report_seconds",
    }
)  # fmt: skip
BY_STAGE = "by_stage"  # the column of those metrics whose names end in a stage of the network, such as grad_norm.STAGE
STAGE_METRIC = "grad_norm."
COUNTS = (
    "params", "mult_adds", "dense_params", "dense_mult_adds", "separable_params", "separable_mult_adds",
    "budget_gap",  # unused of the limit that binds, in its own unit; only where a size was solved
    "bytes", "step_us",  # safetensors on disk and measured step in microseconds; only where a budget limits them
)  # fmt: skip


class Event(StrEnum):
    """What a line of the journal says."""

    STUDY = "study"  # a driver took the study up (first start and every resume)
    PROPOSED = "proposed"  # a specification, its exact counts, and which proposal of the sampler it answers
    ALIAS = "alias"  # further settings that stand for a network already proposed
    INFEASIBLE = "infeasible"  # settings that cannot meet their constraints; never launched
    ATTEMPT = "attempt"  # a worker took the trial up
    ADOPTED = "adopted"  # another study of the series has trained it: which, and on what; its epochs and end follow
    EPOCH = "epoch"  # one epoch's metrics
    NOTICE = "notice"  # a line that a trial has for the user: a cache was built, or could not be read
    POSTPONED = "postponed"  # memory ran out: once more in a later phase, with a larger share
    FINISHED = "finished"  # the trial's end, with status and reason
    TESTED = "tested"  # the one look at the test split
    MARKED = "marked"  # somebody found a trial to be broken (or, `broken` None, sound after all)
    NOTED = "noted"  # a remark and tags of the user's own, on a trial or on the study
    ROOM = "room"  # the driver is ready to train: how many trials at once, on what, and how long that took
    PLACED = "placed"  # what sharing a card was measured to give, and the share that was chosen
    CLOSED = "closed"  # the driver left: finished, interrupted or out of time


class Status(StrEnum):
    """How a trial stands."""

    PROPOSED = "proposed"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped_early"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    INFEASIBLE = "infeasible"


TERMINAL = frozenset(Status) - {Status.PROPOSED, Status.RUNNING}


class Role(StrEnum):
    """Why a trial is trained: proposed by the search, a reference network drawn beside it, or a repeat of either.

    A repeat differs from another trial in nothing but the seed; both have one `point_id`.
    """

    SEARCH = "search"
    REFERENCE = "reference"
    REPEAT = "repeat"


@dataclass
class TrialRecord:
    """One specification and what became of it; equal specifications are one record."""

    trial_id: str
    role: Role = Role.SEARCH
    stratum: str = ""
    status: Status = Status.PROPOSED
    reason: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)  # dotted name in the space file -> value
    aliases: list[dict[str, Any]] = field(default_factory=list)
    specification: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    proposal: dict[str, Any] = field(default_factory=dict)  # where the sampler is told of the outcome
    epochs: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch (from 1) -> metrics, plus "time"
    attempts: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    proposed_at: float | None = None
    finished_at: float | None = None
    test_error: float | None = None
    point_id: str = ""  # the trial's identity without its seed
    postponed: str = ""  # why it was put off to a larger share; empty for a trial that never was
    broken: str = ""  # why its result counts for nothing; empty for a sound trial
    notes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    adopted: dict[str, Any] = field(default_factory=dict)  # the study that trained it, host ...; empty: this one did

    @property
    def ended(self) -> bool:
        """Whether nothing more will be trained of it."""
        return self.status in TERMINAL or bool(self.broken)

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch on record; 0 before the first."""
        return max(self.epochs, default=0)

    @property
    def val_error(self) -> float | None:
        """Validation top-1 error (percent) after the last epoch on record; None before the first."""
        return self.epochs[self.last_epoch].get(VAL_ERROR) if self.epochs else None

    def last_attempt(self, field: str) -> Any:
        """What the newest attempt says of its `host`, `device` ...; None where there was none or it does not say.

        Of an adopted trial it is the attempt of the study that trained it.
        """
        return (self.attempts[-1] if self.attempts else self.adopted).get(field)

    @property
    def method(self) -> str:
        """The method's name, e.g. `tensor_train`; of a thinner network `thin_dense` or `thin_separable`."""
        asked = str(self.parameters.get("method.name", ""))
        if asked.startswith("thin_"):
            return asked
        return str(self.specification.get("method", {}).get("name", self.parameters.get("method.name", "")))


@dataclass
class StudyRecord:
    """A study as its journal tells it; `trials` keeps the order of proposal."""

    header: dict[str, Any] = field(default_factory=dict)  # the newest STUDY event
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    closed: dict[str, Any] | None = None  # the newest CLOSED event, None while a driver is at work (or was killed)
    placement: dict[str, Any] | None = None  # the newest PLACED event
    sittings: list[dict[str, Any]] = field(default_factory=list)  # ROOM events, each with the time it was "closed"
    notes: list[str] = field(default_factory=list)  # the user's own remarks, oldest first
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.header.get("name", ""))


def fold(events: Iterable[Mapping[str, Any]]) -> StudyRecord:
    """Fold journal events into records. Repeated events change nothing; an unknown event raises ValueError."""
    study = StudyRecord()
    with collector_paused():
        for event in events:
            apply_event(study, event)
    return study


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for unreachable cycles meanwhile: among records that are all kept it takes a fifth of the time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def apply_event(study: StudyRecord, event: Mapping[str, Any]) -> None:
    """Apply one journal event to `study` in place; raises ValueError for an unknown kind."""
    if event["event"] == Event.EPOCH:  # first: nearly all lines of a journal are epochs
        _epoch(_trial(study, event["trial"]), event)
        return
    kind = Event(event["event"])
    if kind is Event.STUDY:
        study.header, study.closed = dict(event), None
        return
    if kind is Event.CLOSED:
        study.closed = dict(event)
        if study.sittings:
            study.sittings[-1].setdefault("closed", event["time"])
        return
    if kind is Event.ROOM:
        if dict(event) not in [{key: each[key] for key in each if key != "closed"} for each in study.sittings]:
            study.sittings.append(dict(event))
        return
    if kind is Event.PLACED:
        study.placement = dict(event)
        return
    if kind is Event.NOTED and "trial" not in event:
        _noted(study, event)
        return
    _APPLY[kind](_trial(study, event["trial"]), event)


def _trial(study: StudyRecord, trial_id: str) -> TrialRecord:
    found = study.trials.get(trial_id)
    if found is None:
        found = study.trials[trial_id] = TrialRecord(trial_id=trial_id)
    return found


def parse_tags(pairs: Iterable[str]) -> dict[str, str]:
    """The user's own tags from `K=V` as typed; raises InputError for one that is none or takes a name of ours."""
    tags = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(TAG_RULE, name) or not value or len(value) > LONGEST_NOTE:
            raise InputError(
                "a tag must read K=V, K of up to 80 letters, digits, `_` or `-` after a letter, V of up to "
                f"{LONGEST_NOTE:,} characters, but got {pair[:100]!r}"
            )
        if name in OWN_TAGS:
            raise InputError(f"the tag {name!r} is taken: these are ours: {', '.join(sorted(OWN_TAGS))}")
        tags[name] = value
    return tags


def check_note(text: str | None) -> str:
    """A remark without its outer blanks, empty for none; raises InputError when it is blank or too long."""
    if text is None:
        return ""
    if not text.strip() or len(text) > LONGEST_NOTE:
        raise InputError(f"a note must have 1 to {LONGEST_NOTE:,} characters, but got {len(text.strip()):,}")
    return text.strip()


def _proposed(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.role = Role(event["role"])
    trial.stratum = event["stratum"]
    trial.parameters = dict(event["parameters"])
    trial.specification = dict(event["specification"])
    trial.counts = dict(event["counts"])
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
    trial.adopted = {}  # it is trained here after all
    if trial.status not in TERMINAL:
        trial.status = Status.RUNNING
    attempt = {key: event[key] for key in event if key not in ("event", "trial")}
    if attempt not in trial.attempts:
        trial.attempts.append(attempt)


def _adopted(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.adopted = {key: event[key] for key in event if key not in ("event", "trial", "time")}


def _epoch(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.epochs[int(event["epoch"])] = {**shared_names(event["metrics"]), "time": event["time"]}


def shared_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """A copy whose names are one string for all epochs: apart they would take more memory than the values."""
    return {sys.intern(name): value for name, value in metrics.items()}


def _notice(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    if event["text"] not in trial.notices:
        trial.notices.append(event["text"])


def _postponed(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    if trial.status not in TERMINAL:
        trial.status, trial.postponed = Status.PROPOSED, event["reason"]


def _finished(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.status, trial.reason = Status(event["status"]), event.get("reason", "")
    trial.finished_at = event["time"]


def _tested(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.test_error = event["test_error"]


def _marked(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.broken = event["broken"] or ""


def _noted(noted: TrialRecord | StudyRecord, event: Mapping[str, Any]) -> None:
    if event["note"] and event["note"] not in noted.notes:
        noted.notes.append(event["note"])
    noted.tags.update(event["tags"])


_APPLY = {
    Event.PROPOSED: _proposed,
    Event.ALIAS: _alias,
    Event.INFEASIBLE: _infeasible,
    Event.ATTEMPT: _attempt,
    Event.ADOPTED: _adopted,
    Event.NOTICE: _notice,
    Event.POSTPONED: _postponed,
    Event.FINISHED: _finished,
    Event.TESTED: _tested,
    Event.MARKED: _marked,
    Event.NOTED: _noted,
}
