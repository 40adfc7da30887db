"""Names and schema of everything that a study records; the only part of `sweeps` that `analysis` imports.

A study is its journal: one JSON object a line, appended by the driver alone. `fold` turns the events into typed
records, whatever was interrupted or repeated; `to_table` and `epochs_to_table` turn those into Arrow tables.

Units: errors are top-1 errors in percent; losses are means over samples; times are seconds since the epoch;
durations are seconds; parameters and mult-adds are plain counts, mult-adds for one image.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyarrow as pa

from lowrank.errors import InputError

JOURNAL_FILE = "journal.jsonl"
RESULTS_FILE = "results.parquet"
EPOCHS_FILE = "epochs.parquet"
SPACE_FILE = "space.yaml"
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
    "study", "study_key", "trial_id", "point", "role", "stratum", "status", "reason", "attempts", "aliases", "broken",
    "data", "network", "question", "commit", "command", "seed", "hardware", "host", "device", "artifacts_complete",
})  # fmt: skip
TAG_RULE = r"[A-Za-z][A-Za-z0-9_-]{0,79}"

TRIAL_WEIGHTS = "trial:"  # of a specification's start: the weights of this study's trial of that id

VAL_ERROR = "val_error"
# Of every epoch, where it applies; errors in percent, losses as means over samples (see docs/training.md)
EPOCH_METRICS = (
    VAL_ERROR, "val_loss", "train_error", "train_loss", "lr", "images_per_second", "epoch_seconds", "val_error_top5",
    "loss_cross_entropy", "loss_kd", "loss_attention", "loss_auxiliary", "prediction_spread", "grad_norm",
    "loss_scale", "skipped_steps", "peak_device_mb", "device_utilisation", "host_memory_mb",
)  # fmt: skip
# Those of them that tell of the machine rather than of the training
MACHINE_METRICS = frozenset(
    {"images_per_second", "epoch_seconds", "peak_device_mb", "device_utilisation", "host_memory_mb"}
)
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
    EPOCH = "epoch"  # one epoch's metrics
    NOTICE = "notice"  # a line that a trial has for the user: a cache was built, or could not be read
    FINISHED = "finished"  # the trial's end, with status and reason
    TESTED = "tested"  # the one look at the test split
    MARKED = "marked"  # somebody found a trial to be broken (or, `broken` None, sound after all)
    NOTED = "noted"  # a remark and tags of the user's own, on a trial or on the study
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
    broken: str = ""  # why its result counts for nothing; empty for a sound trial
    notes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

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
    notes: list[str] = field(default_factory=list)  # the user's own remarks, oldest first
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.header.get("name", ""))


def fold(events: Iterable[Mapping[str, Any]]) -> StudyRecord:
    """Fold journal events into records. Repeated events change nothing; an unknown event raises ValueError."""
    study = StudyRecord()
    for event in events:
        apply_event(study, event)
    return study


def apply_event(study: StudyRecord, event: Mapping[str, Any]) -> None:
    """Apply one journal event to `study` in place; raises ValueError for an unknown kind."""
    kind = Event(event["event"])
    if kind is Event.STUDY:
        study.header, study.closed = dict(event), None
        return
    if kind is Event.CLOSED:
        study.closed = dict(event)
        return
    if kind is Event.NOTED and "trial" not in event:
        _noted(study, event)
        return
    trial = study.trials.setdefault(event["trial"], TrialRecord(trial_id=event["trial"]))
    _APPLY[kind](trial, event)


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
    if trial.status not in TERMINAL:
        trial.status = Status.RUNNING
    attempt = {key: event[key] for key in event if key not in ("event", "trial")}
    if attempt not in trial.attempts:
        trial.attempts.append(attempt)


def _epoch(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    trial.epochs[int(event["epoch"])] = {**shared_names(event["metrics"]), "time": event["time"]}


def shared_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """A copy whose names are one string for all epochs: apart they would take more memory than the values."""
    return {sys.intern(name): value for name, value in metrics.items()}


def _notice(trial: TrialRecord, event: Mapping[str, Any]) -> None:
    if event["text"] not in trial.notices:
        trial.notices.append(event["text"])


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
    Event.EPOCH: _epoch,
    Event.NOTICE: _notice,
    Event.FINISHED: _finished,
    Event.TESTED: _tested,
    Event.MARKED: _marked,
    Event.NOTED: _noted,
}

RESULTS_SCHEMA = pa.schema(
    [
        ("study", pa.string()), ("trial_id", pa.string()), ("role", pa.string()), ("stratum", pa.string()),
        ("status", pa.string()), ("reason", pa.string()), ("network", pa.string()), ("data", pa.string()),
        ("data_fingerprint", pa.string()), ("method", pa.string()), ("dims", pa.int64()),
        ("rank_scale", pa.float64()), *((name, pa.int64()) for name in COUNTS),
        ("weight_decay", pa.float64()), ("scaled_decay", pa.bool_()), ("decay", pa.string()), ("seed", pa.int64()),
        ("teacher", pa.string()), ("attention_weight", pa.float64()), ("kd_weight", pa.float64()),
        ("epochs", pa.int64()), ("val_error", pa.float64()), ("val_loss", pa.float64()),
        ("train_error", pa.float64()), ("train_loss", pa.float64()), ("test_error", pa.float64()),
        ("images_per_second", pa.float64()), ("train_seconds", pa.float64()), ("start_seconds", pa.float64()),
        ("attempts", pa.int64()), ("proposed_at", pa.float64()), ("finished_at", pa.float64()),
        ("point_id", pa.string()), ("allocation", pa.string()), ("decay_multiplier", pa.float64()),
        ("start", pa.string()),
        ("parameters", pa.string()), ("aliases", pa.string()), ("specification", pa.string()),
        ("broken", pa.string()), ("note", pa.string()), ("tags", pa.string()),
    ]
)  # fmt: skip

EPOCHS_SCHEMA = pa.schema(
    [("trial_id", pa.string()), ("epoch", pa.int64()), ("time", pa.float64())]
    + [(name, pa.float64()) for name in EPOCH_METRICS]
    + [(BY_STAGE, pa.map_(pa.string(), pa.float64()))]
)

# What `--fit` measures: one row a distinct configuration, on the device that its trials will use. MB are 1e6 bytes;
# `largest_batch` is 0 where none fits; `limited` says that a larger one was seen not to fit.
FIT_SCHEMA = pa.schema(
    [
        ("trial_id", pa.string()), ("stratum", pa.string()), ("network", pa.string()), ("method", pa.string()),
        ("params", pa.int64()), ("parameters", pa.string()), ("configuration", pa.string()), ("teacher", pa.string()),
        ("host", pa.string()), ("device", pa.string()), ("share", pa.float64()), ("precision", pa.string()),
        ("batch_size", pa.int64()), ("status", pa.string()), ("reason", pa.string()), ("peak_mb", pa.float64()),
        ("step_seconds", pa.float64()), ("images_per_second", pa.float64()), ("largest_batch", pa.int64()),
        ("limited", pa.bool_()), ("measured_at", pa.float64()),
    ]
)  # fmt: skip
FITS, OUT_OF_MEMORY, FAILED = "fits", str(Status.OUT_OF_MEMORY), str(Status.FAILED)  # its statuses
FIT_FOLDER = "fit"  # in the folder of studies; one Parquet file a space


def to_row(study: str, trial: TrialRecord) -> dict[str, Any]:
    """One trial as a row of RESULTS_SCHEMA; what is not known is None."""
    spec = trial.specification
    method, train, data = (spec.get(section, {}) for section in ("method", "train", "data"))
    last = trial.epochs.get(trial.last_epoch, {})
    speeds = [epoch["images_per_second"] for epoch in trial.epochs.values() if "images_per_second" in epoch]
    row: dict[str, Any] = {
        "study": study, "trial_id": trial.trial_id, "role": str(trial.role), "stratum": trial.stratum,
        "status": str(trial.status), "reason": trial.reason, "network": spec.get("network", {}).get("name"),
        "data": data.get("name"), "data_fingerprint": data.get("fingerprint"), "method": trial.method,
        "dims": method.get("dims"), "rank_scale": method.get("rank_scale"),
        "weight_decay": train.get("weight_decay"), "scaled_decay": train.get("scaled_decay"),
        "decay": train.get("decay"),
        "teacher": spec.get("teacher", {}).get("name"), "attention_weight": train.get("attention_weight"),
        "kd_weight": train.get("kd_weight"),
        "seed": spec.get("seed"), "epochs": trial.last_epoch, "test_error": trial.test_error,
        "images_per_second": sum(speeds) / len(speeds) if speeds else None,
        "train_seconds": sum(epoch.get("epoch_seconds", 0.0) for epoch in trial.epochs.values()),
        "start_seconds": sum(attempt.get("start_seconds", 0.0) for attempt in trial.attempts),
        "attempts": len(trial.attempts), "proposed_at": trial.proposed_at, "finished_at": trial.finished_at,
        "point_id": trial.point_id or None, "allocation": spec.get("allocation", {}).get("by", "even"),
        "decay_multiplier": train.get("decay_multiplier"), "start": "dense" if "start" in spec else "scratch",
        "parameters": json.dumps(trial.parameters, sort_keys=True),
        "aliases": json.dumps(trial.aliases, sort_keys=True), "specification": json.dumps(spec, sort_keys=True),
        "broken": trial.broken or None, "note": "\n".join(trial.notes) or None,
        "tags": json.dumps(trial.tags, sort_keys=True),
    }  # fmt: skip
    row.update({name: trial.counts.get(name) for name in COUNTS})
    row.update({name: last.get(name) for name in ("val_error", "val_loss", "train_error", "train_loss")})
    return row


def to_table(study: StudyRecord) -> pa.Table:
    """The study's trials as an Arrow table of RESULTS_SCHEMA, one row a trial, in order of proposal."""
    return pa.Table.from_pylist([to_row(study.name, trial) for trial in study.trials.values()], RESULTS_SCHEMA)


def epoch_to_row(trial_id: str, epoch: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """One epoch as a row of EPOCHS_SCHEMA; what is not known is None."""
    stages = [(name, value) for name, value in metrics.items() if name.startswith(STAGE_METRIC)]
    known = {name: metrics.get(name) for name in ("time", *EPOCH_METRICS)}
    return {"trial_id": trial_id, "epoch": epoch, **known, BY_STAGE: stages}


def metrics_of_row(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics, and "time", of a row that `epoch_to_row` made."""
    known = {name: row[name] for name in ("time", *EPOCH_METRICS) if row.get(name) is not None}
    return known | dict(row.get(BY_STAGE) or ())


def epochs_to_table(study: StudyRecord) -> pa.Table:
    """Every epoch of every trial as an Arrow table of EPOCHS_SCHEMA."""
    rows = [
        epoch_to_row(trial.trial_id, number, metrics)
        for trial in study.trials.values()
        for number, metrics in sorted(trial.epochs.items())
    ]
    return pa.Table.from_pylist(rows, EPOCHS_SCHEMA)
