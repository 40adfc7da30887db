"""What a study is called in MLflow: names of runs, parameters, metrics and tags, chosen for MLflow's own interface.

* **Parameters** bear the dotted names of the space file (`method.dims`, `train.lr`), so that they sort by section,
  and what the compare view shows is what one would type after `--set`.
* **Metrics** of an epoch keep the names of `sweeps.records.names`. A slash makes a section of its own in the chart
  view: `grad_norm/STAGE`, `study/...` (of the parent run alone), and MLflow's own `system/...`, which it shows apart.
* **Tags** are what one filters and groups by: `tags.broken = 'no'`, `tags.role = 'search'`, group by `point`.

Parameters are counts, `params_over_separable` is a share (1 is as large), errors are percent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lowrank.utils.text import format_count
from sweeps.records.events import Status
from sweeps.records.fronts import front, mean_error, point_key
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import EPOCH_METRICS, STAGE_METRIC, VAL_ERROR

STUDY_TAG, KEY_TAG, TRIAL_TAG, COMPLETE_TAG = "study", "study_key", "trial_id", "artifacts_complete"
POINT_TAG, BROKEN_TAG, SOUND = "point", "broken", "no"
TABLES_TAG, CURRENT, BEHIND = "tables", "current", "behind"  # of the parent: whether runs know more than its tables
STUDY_FILE, TRIAL_FILE, INFEASIBLE_FILE = "study.json", "trial.json", "infeasible.json"  # records without their epochs
PARENT_TAG, DESCRIPTION_TAG = "mlflow.parentRunId", "mlflow.note.content"
KIND_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # MLflow opens the view for trainings, not for chats
SYSTEM_NAMES = {
    "device_utilisation": "system/gpu_0_utilization_percentage",  # a trial sees its own card as the first
    "peak_device_mb": "system/gpu_0_memory_usage_megabytes",
    "host_memory_mb": "system/system_memory_usage_megabytes",
}
_OF_SYSTEM = {theirs: ours for ours, theirs in SYSTEM_NAMES.items()}
ID_SHOWN = 6  # characters of an id in a name; `analysis mark` takes them too


def run_name(trial: TrialRecord) -> str:
    """E.g. `tensor_train 3d 85.3k 1a2b3c`: method, dimensions, size, id; sorts by method, then by shape."""
    return f"{_setting(trial)} {trial.trial_id[:ID_SHOWN]}"


def model_name(trial: TrialRecord) -> str:
    """A run's name with the size in full: MLflow allows no dot in the name of a model."""
    return f"{trial.method} {trial.counts['params']} {trial.trial_id[:ID_SHOWN]}"


def point_name(trial: TrialRecord) -> str:
    """One name for all trials that differ in nothing but the seed, e.g. `tensor_train 3d 85.3k #9f8e7d`."""
    point_id = trial.point_id or hashlib.sha256(point_key(trial).encode()).hexdigest()
    return f"{_setting(trial)} #{point_id[:ID_SHOWN]}"


def _setting(trial: TrialRecord) -> str:
    dims = trial.specification.get("method", {}).get("dims")
    shared, size = trial.specification.get("allocation", {}).get("by"), trial.counts.get("params")
    parts = [
        trial.method or str(trial.role), f"{dims}d" if dims else "", f"by {shared}" if shared else "",
        format_count(size) if size is not None else "",
    ]  # fmt: skip
    return " ".join(filter(None, parts))


def run_params(trial: TrialRecord) -> dict[str, str]:
    """Return every field of the specification and of the proposed point, and the exact counts.

    Args:
        trial: what is unset in it is left out.

    Returns:
        Values as text, by dotted name in alphabetical order.
    """
    named = {**_flat(trial.parameters), **_flat(trial.specification), **trial.counts, "stratum": trial.stratum}
    return {name: _spelt(value) for name, value in sorted(named.items()) if value not in (None, "")}


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _spelt(value: Any) -> str:
    """As a space file spells it, to six digits: every one of them is in trial.json."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def size_metrics(trial: TrialRecord) -> dict[str, float]:
    """Sizes as metrics too: only metrics can be an axis of MLflow's scatter plots."""
    known = ("params", "mult_adds")
    found: dict[str, float] = {name: float(trial.counts[name]) for name in known if name in trial.counts}
    if "params" in found and trial.counts.get("separable_params"):
        found["params_over_separable"] = found["params"] / trial.counts["separable_params"]
    return found


def metric_name(name: str) -> str:
    """The name in MLflow of a metric of an epoch."""
    return SYSTEM_NAMES.get(name) or name.replace(".", "/", 1)


def metric_of(name: str) -> str | None:
    """The metric of an epoch that has this name in MLflow; None for what is no metric of an epoch (sizes, test error).

    Names of stages are those of modules, in which MLflow forbids nothing.
    """
    ours = _OF_SYSTEM.get(name) or name.replace("/", ".", 1)
    return ours if ours in EPOCH_METRICS or ours.startswith(STAGE_METRIC) else None


def identity_tags(study: StudyRecord, trial: TrialRecord, parent: str) -> dict[str, str]:
    """What a trial's run is found by."""
    return {STUDY_TAG: study.name, TRIAL_TAG: trial.trial_id, PARENT_TAG: parent, **source_tags(study)}


def source_tags(study: StudyRecord) -> dict[str, str]:
    """What MLflow's column `Source` and the run's page show."""
    commit = str(study.header.get("commit", "")).removesuffix("-dirty")
    return {
        "mlflow.source.name": "sweeps/run.py", "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": commit,
    }  # fmt: skip


def trial_tags(study: StudyRecord, trial: TrialRecord) -> dict[str, str]:
    """How a trial stands, and the user's own tags; all trials have `broken`, so that it can be filtered both ways."""
    tags: dict[str, str] = {
        **study.tags, **trial.tags, "role": str(trial.role), "stratum": trial.stratum, POINT_TAG: point_name(trial),
        "status": str(trial.status), "reason": trial.reason, "attempts": str(len(trial.attempts)),
        BROKEN_TAG: trial.broken or SOUND, DESCRIPTION_TAG: _description(trial),
    }  # fmt: skip
    tags |= {name: str(found) for name in ("host", "device") if (found := trial.last_attempt(name)) is not None}
    if trial.adopted:
        tags["adopted"] = str(trial.adopted["study"])
    if trial.aliases:
        tags["aliases"] = json.dumps(trial.aliases, sort_keys=True)
    return tags


def _description(trial: TrialRecord) -> str:
    lines = [f"Marked broken: {trial.broken}"] if trial.broken else []
    return "\n\n".join([*lines, *trial.notes])


def study_tags(study: StudyRecord) -> dict[str, str]:
    """Tags of the parent run; its description is the question and the user's notes."""
    header = study.header
    named = {"data": header.get("data", {}).get("name"), "network": header.get("network", {}).get("name")}
    plain = {key: header.get(key) for key in ("question", "commit", "command", "seed", "hardware")}
    notes = "\n\n".join([str(header.get("question", "")), *study.notes])
    tags = {**study.tags, **named, **plain, **source_tags(study), DESCRIPTION_TAG: notes}
    return {name: str(value) for name, value in tags.items() if value is not None}


def study_metrics(study: StudyRecord) -> dict[str, float]:
    """Counts of trials by status, and the best that the search found: mean error (percent) and parameters."""
    trials = study.trials.values()
    statuses = [trial.status for trial in trials if not trial.broken]
    found: dict[str, float] = {f"study/trials_{status}": statuses.count(status) for status in Status}
    found["study/trials_broken"] = sum(bool(trial.broken) for trial in trials)
    best = min(front(trials), key=mean_error, default=None)
    if best is not None:
        found |= {f"study/best_{VAL_ERROR}": mean_error(best), "study/best_params": best[0].counts["params"]}
    return found


def version_tags(trial: TrialRecord) -> dict[str, str]:
    """Tags of a registered version: which trial it is, how good, and whether it counts."""
    named = {"params": trial.counts.get("params"), VAL_ERROR: trial.val_error, "test_error": trial.test_error}
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in named.items()}
    return {TRIAL_TAG: trial.trial_id, "setting": _setting(trial), BROKEN_TAG: trial.broken or SOUND, **shown}
