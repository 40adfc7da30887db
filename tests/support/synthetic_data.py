"""Study records made by hand, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.records.events import Role, Status
from sweeps.records.header import StudyHeader
from sweeps.records.image_errors import encode_wrong_images
from sweeps.records.model import StudyRecord, TrialRecord
from tests.support.specifications import make_specification

SEPARABLE, DENSE = 1_000, 8_000


def trial(
    trial_id: str, params: int = 100, error: float | None = 5.0, *, method: str = "cp", dims: int | None = 2,
    seed: int = 0, role: Role = Role.SEARCH, status: Status = Status.COMPLETED, stratum: str = "", width: float = 1.0,
    epochs: int = 1, seconds: float = 1.0, scale: float | None = None, reason: str = "", **parameters: Any,
) -> TrialRecord:  # fmt: skip
    """A record; `parameters` are searched fields, with `__` for the dot."""
    record = TrialRecord(
        trial_id=trial_id, role=role, status=status, stratum=stratum, reason=reason,
        parameters={key.replace("__", "."): value for key, value in parameters.items()},
        specification=make_specification(
            network={"name": "resnet9", "width": width},
            method={"name": method, "dims": dims, "rank_scale": scale, **_under("method__", parameters)},
            train={"epochs": epochs, **_under("train__", parameters)}, seed=seed,
        ),
        counts={"params": params, "mult_adds": 10 * params, "separable_params": SEPARABLE, "dense_params": DENSE},
    )  # fmt: skip
    if error is not None:
        record.epochs = {n: {"val_error": error, "epoch_seconds": seconds} for n in range(1, epochs + 1)}
    return record


def trial_of_images(trial_id: str, wrong: Sequence[int], images: int = 100, **fields: Any) -> TrialRecord:
    """A record with the numbers of the validation images that were wrong, and the error that they give."""
    bits = np.zeros(images, dtype=bool)
    bits[list(wrong)] = True
    record = trial(trial_id, error=100 * float(bits.mean()), **fields)
    record.wrong_images = {"val": encode_wrong_images(bits)}
    return record


def _under(prefix: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}


def study(*trials: TrialRecord, **header: Any) -> StudyRecord:
    """A study of these trials, named `made` unless the header says otherwise."""
    return StudyRecord(
        header=StudyHeader.parse({"name": "made", **header}), trials={each.trial_id: each for each in trials}
    )
