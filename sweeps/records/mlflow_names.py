"""Names of runs, parameters, metrics and tags in MLflow, chosen for MLflow's own interface.

* **Parameters** have the dotted names of the space file (`method.dims`, `train.lr`), so that they sort by section,
  and what the compare view shows is what one would type after `--set`.
* **Metrics** of an epoch keep the names of `sweeps.records.names`. A slash makes a section of its own in the chart
  view: `grad_norm/STAGE`, `study/...` (of the parent run alone), and MLflow's own `system/...`, which it shows apart.
* **Tags** serve to filter and group: `tags.broken = 'no'`, `tags.role = 'search'`, group by `point`.

Parameters are counts, `params_over_separable` is a share (1 is as large), errors are percent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank.layers import VARIATIONAL_METHODS
from lowrank.utils import format_count
from sweeps.records.events import Status
from sweeps.records.fronts import front, mean_error, point_key
from sweeps.records.header import StudyHeader
from sweeps.records.model import StudyRecord, TrialRecord
from sweeps.records.names import EPOCH_METRICS, PART_METRIC_PREFIXES, VAL_ERROR

STUDY_TAG, KEY_TAG, TRIAL_TAG, COMPLETE_TAG = "study", "study_key", "trial_id", "artifacts_complete"
POINT_TAG, BROKEN_TAG, SOUND = "point", "broken", "no"
TABLES_TAG, CURRENT, BEHIND = (
    "tables",
    "current",
    "behind",
)  # of the parent run: whether the runs are ahead of its tables
STUDY_FILE, TRIAL_FILE, INFEASIBLE_FILE = "study.json", "trial.json", "infeasible.json"  # records without their epochs
PARENT_TAG, DESCRIPTION_TAG = "mlflow.parentRunId", "mlflow.note.content"
KIND_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # makes MLflow open the view for trainings
SYSTEM_NAMES = {
    "device_utilisation": "system/gpu_0_utilization_percentage",  # a trial sees its own GPU as the first
    "peak_device_mb": "system/gpu_0_memory_usage_megabytes",
    "host_memory_mb": "system/system_memory_usage_megabytes",
}
_METRICS_BY_SYSTEM_NAME = {system_name: metric for metric, system_name in SYSTEM_NAMES.items()}
_BROKEN_PREFIX = "Marked broken: "
ID_SHOWN = 6  # characters of an id in a name; `analysis mark` takes them too


def study_key(header: StudyHeader) -> str:
    """Give the tag that tells a study from others of the same name.

    Args:
        header: the study's first STUDY event.

    Returns:
        Its name and the time when it began, in milliseconds.
    """
    return f"{header.name} {round(header.began * 1000)}"


def run_name(trial: TrialRecord) -> str:
    """Name a trial's run so that runs sort by method, then by shape.

    Args:
        trial: the record.

    Returns:
        Method, dimensions, size and id, e.g. `tensor_train 3d 85.3k 1a2b3c`.
    """
    return f"{_setting(trial)} {trial.trial_id[:ID_SHOWN]}"


def model_name(trial: TrialRecord) -> str:
    """Name a trial's registered model; it has the size in full, for MLflow allows no dot in it.

    Args:
        trial: the record.

    Returns:
        Method, parameters and id.
    """
    return f"{trial.method} {trial.counts['params']} {trial.trial_id[:ID_SHOWN]}"


def point_name(trial: TrialRecord) -> str:
    """Name all trials that differ in nothing but the seed.

    Args:
        trial: one of them.

    Returns:
        E.g. `tensor_train 3d 85.3k #9f8e7d`.
    """
    point_id = trial.point_id or hashlib.sha256(point_key(trial).encode()).hexdigest()
    return f"{_setting(trial)} #{point_id[:ID_SHOWN]}"


def _setting(trial: TrialRecord) -> str:
    spec, size = trial.specification, trial.counts.get("params")
    dims = spec.method.dims if spec else None
    shared = spec.allocation.by if spec and spec.allocation else None
    parts = [
        trial.method or str(trial.role), f"{dims}d" if dims else "", f"by {shared}" if shared else "",
        format_count(size) if size is not None else "",
    ]  # fmt: skip
    return " ".join(filter(None, parts))


def run_params(trial: TrialRecord) -> dict[str, str]:
    """Return every field of the specification and of the proposed point, and the exact counts.

    MLflow refuses to change them; counts that are not known yet are left out.

    Args:
        trial: what is unset in it is left out.

    Returns:
        Values as text, by dotted name in alphabetical order.
    """
    specification = trial.specification.to_json() if trial.specification else {}
    named = {**_flat(trial.parameters), **_flat(specification), **_final_counts(trial), "stratum": trial.stratum}
    return {name: _spelled(value) for name, value in sorted(named.items()) if value not in (None, "")}


def _final_counts(trial: TrialRecord) -> dict[str, int]:
    """Return the counts that stay: those of variational layers follow from their training, and were limits before."""
    if trial.method not in VARIATIONAL_METHODS or trial.removed:
        return trial.counts
    return {name: count for name, count in trial.counts.items() if name.startswith(("dense_", "separable_"))}


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in section.items():
        fields |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return fields


def _spelled(value: Any) -> str:
    """As a space file writes it, numbers to six digits; trial.json has all of them."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def size_metrics(trial: TrialRecord) -> dict[str, float]:
    """Give a trial's sizes as metrics too, for only metrics can be an axis of MLflow's plots.

    Args:
        trial: the record.

    Returns:
        Parameters, mult-adds and the share of the separable network's parameters, where they are known.
    """
    counts = _final_counts(trial)
    sizes = [name for name in ("params", "mult_adds") if name in counts]
    metrics: dict[str, float] = {name: float(counts[name]) for name in sizes}
    if "params" in metrics and counts.get("separable_params"):
        metrics["params_over_separable"] = metrics["params"] / counts["separable_params"]
    return metrics


def initial_metrics(trial: TrialRecord) -> dict[str, float]:
    """Give what was measured after a start from trained weights, before any training.

    Args:
        trial: the record.

    Returns:
        The network's validation error (percent) and loss, and the relative errors of each layer's weight and output,
        each kind in a section of its own; empty where the trial did not start from trained weights.
    """
    metrics = {
        f"initial/{name}": float(trial.initial[name]) for name in (VAL_ERROR, "val_loss") if name in trial.initial
    }
    for layer in trial.initial.get("layers", []):
        for kind in ("weight_error", "output_error"):
            metrics[f"initial_{kind}/{layer['name']}"] = float(layer[kind])
    return metrics


def metric_name(name: str) -> str:
    """Give the name in MLflow of a metric of an epoch.

    Args:
        name: as in the journal.

    Returns:
        The name in MLflow, where a slash begins a section.
    """
    return SYSTEM_NAMES.get(name) or name.replace(".", "/", 1)


def metric_of(name: str) -> str | None:
    """Find the metric of an epoch that has a name in MLflow.

    Args:
        name: as MLflow has it.

    Returns:
        The name in the journal; None for what is no metric of an epoch, such as sizes and the test error.
    """
    metric = _METRICS_BY_SYSTEM_NAME.get(name) or name.replace("/", ".", 1)
    return metric if metric in EPOCH_METRICS or metric.startswith(PART_METRIC_PREFIXES) else None


def identity_tags(study: StudyRecord, trial: TrialRecord, parent: str) -> dict[str, str]:
    """Give the tags by which a trial's run is found.

    Args:
        study: the study.
        trial: one of its trials.
        parent: id of the study's parent run.

    Returns:
        Values by tag.
    """
    return {STUDY_TAG: study.name, TRIAL_TAG: trial.trial_id, PARENT_TAG: parent, **source_tags(study)}


def source_tags(study: StudyRecord) -> dict[str, str]:
    """Give the tags that MLflow's column `Source` and the run's page show.

    Args:
        study: the study.

    Returns:
        Values by tag.
    """
    commit = (study.header.commit or "").removesuffix("-dirty")
    return {
        "mlflow.source.name": "sweeps/run.py", "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": commit,
    }  # fmt: skip


def trial_tags(study: StudyRecord, trial: TrialRecord) -> dict[str, str]:
    """Give the tags of a trial's state and those of the user.

    Args:
        study: the study, whose own tags every trial has.
        trial: one of its trials.

    Returns:
        Values by tag; every trial has `broken`, so that it can be filtered both ways.
    """
    tags: dict[str, str] = {
        **study.tags, **trial.tags, "role": str(trial.role), "stratum": trial.stratum, POINT_TAG: point_name(trial),
        "status": str(trial.status), "reason": trial.reason, "attempts": str(len(trial.attempts)),
        BROKEN_TAG: trial.broken or SOUND, DESCRIPTION_TAG: "\n\n".join(recorded_paragraphs(trial)),
    }  # fmt: skip
    tags |= {name: str(trial.last_attempt(name)) for name in ("host", "device") if trial.last_attempt(name) is not None}
    if trial.adopted:
        tags["adopted"] = str(trial.adopted["study"])
    if trial.aliases:
        tags["aliases"] = json.dumps(trial.aliases, sort_keys=True)
    return tags


def recorded_paragraphs(record: StudyRecord | TrialRecord) -> list[str]:
    """Give what the records say in a run's description; people may add to it in MLflow's own page.

    Args:
        record: of the trial or, for the parent run, of the study.

    Returns:
        Of a trial why it is broken, and its notes; of a study the question and its notes.
    """
    if isinstance(record, StudyRecord):
        return [record.header.question, *record.notes]
    lines = [f"{_BROKEN_PREFIX}{' '.join(record.broken.split())}"] if record.broken else []
    return [*lines, *record.notes]


def typed_text(description: str, paragraphs: Iterable[str]) -> str:
    """Find what people have typed into a description in MLflow.

    Args:
        description: as the store has it.
        paragraphs: what the records say, as `recorded_paragraphs` gives.

    Returns:
        The rest; "" where nothing was typed.
    """
    text = description.replace("\r\n", "\n")
    for paragraph in sorted((paragraph.strip() for paragraph in paragraphs), key=len, reverse=True):
        if paragraph:
            text = re.sub(rf"(?:^|(?<=\n)){re.escape(paragraph)}\s*?(?=\n|$)", "", text, count=1)
    lines = (part for part in re.split(r"\n{2,}", text) if not part.strip().startswith(_BROKEN_PREFIX))  # undone since
    return "\n\n".join(lines).strip()


def join_description(description: str, paragraphs: Sequence[str]) -> str:
    """Renew what the records say in a description, and keep what people have typed.

    Args:
        description: as the store has it.
        paragraphs: what the records say now.

    Returns:
        The new description.
    """
    typed = typed_text(description, paragraphs)
    return "\n\n".join([*paragraphs, typed] if typed else paragraphs)


def study_tags(study: StudyRecord) -> dict[str, str]:
    """Give the tags of the parent run, whose description is the question and the user's notes.

    Args:
        study: the study.

    Returns:
        Values by tag, without those that are unknown.
    """
    header = study.header
    tags = {
        **study.tags, "data": header.data.name or None, "network": header.network.name or None,
        "question": header.question, "commit": header.commit, "command": header.command, "seed": header.seed,
        "hardware": header.hardware.to_json() or None, **source_tags(study),
    }  # fmt: skip
    tags[DESCRIPTION_TAG] = "\n\n".join(recorded_paragraphs(study))
    return {name: str(value) for name, value in tags.items() if value is not None}


def study_metrics(study: StudyRecord) -> dict[str, float]:
    """Count a study's trials by status and give the best of them.

    Args:
        study: the study.

    Returns:
        Metrics by name; the best by mean error, in percent.
    """
    trials = study.trials.values()
    statuses = [trial.status for trial in trials if not trial.broken]
    metrics: dict[str, float] = {f"study/trials_{status}": statuses.count(status) for status in Status}
    metrics["study/trials_broken"] = sum(bool(trial.broken) for trial in trials)
    best = min(front(trials), key=mean_error, default=None)
    if best is not None:
        metrics |= {f"study/best_{VAL_ERROR}": mean_error(best), "study/best_params": best[0].counts["params"]}
    return metrics


def version_tags(trial: TrialRecord) -> dict[str, str]:
    """Give the tags of a registered version: its trial, its errors and whether it counts.

    Args:
        trial: the record.

    Returns:
        Values by tag.
    """
    named = {"params": trial.counts.get("params"), VAL_ERROR: trial.val_error, "test_error": trial.test_error}
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in named.items()}
    return {TRIAL_TAG: trial.trial_id, "setting": _setting(trial), BROKEN_TAG: trial.broken or SOUND, **shown}
