"""The study's images as an MLflow data set: an input of every run, under the fingerprint of their contents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sweeps.records import StudyRecord

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXT_TAG = "mlflow.data.context"  # MLflow's interface shows its value as what a run used the data for
SIZES = ("train_images", "val_images", "test_images", "classes")


def dataset_input(study: StudyRecord) -> DatasetInput | None:
    """Make MLflow's data set of a study, with the sizes of its splits.

    Args:
        study: the study; its header names the data.

    Returns:
        The input for runs; None for a study that names no data.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = study.header.data
    if not data.name or not data.fingerprint:
        return None
    kind, _, folder = data.name.partition(":")
    section = study.header.space.get("data")
    source = {"uri": folder or kind, "settings": section if isinstance(section, dict) else {"name": data.name}}
    label = f"{kind} {folder.rstrip('/').rpartition('/')[2]}" if folder else kind
    profile = data.model_dump(include=set(SIZES), exclude_unset=True)
    dataset = Dataset(
        name=label, digest=data.fingerprint[:36],
        source_type="local" if folder else kind, source=json.dumps(source, sort_keys=True),
        profile=json.dumps(profile, sort_keys=True),
    )  # fmt: skip
    return DatasetInput(dataset, [InputTag(CONTEXT_TAG, "training")])
