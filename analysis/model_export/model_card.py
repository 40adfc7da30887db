"""The model card of an exported network: what it is, how good, how sure, how fast, how to use it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from analysis.stats import FrontPoint, validation_images, wilson_interval
from analysis.utils import render_template
from lowrank.deployment import FACTORISED, MERGED, ExportedFile, Latency
from lowrank.io import ModelSpecification
from sweeps.records import StudyRecord

PACKAGE, TEMPLATE = "analysis.model_export", "templates/model_card.md.j2"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Everything that was measured while exporting.

    `sizes` (bytes on disk) and `mult_adds` are by network. The names of the fields are keys of `proof.json`.
    """

    study: str
    trial_id: str
    setting: str
    params: int
    images: str  # on which the outputs were compared
    forms: tuple[ExportedFile, ...]
    sizes: dict[str, int]
    mult_adds: dict[str, int]
    latencies: tuple[Latency, ...]
    machine: str
    date: str

    @property
    def equal(self) -> bool:
        """Whether every file gives the trained model's outputs."""
        return all(file.equal for file in self.forms)

    @property
    def largest_logit(self) -> float:
        """The largest absolute logit of the trained model."""
        return max(file.largest for file in self.forms)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images become inputs, by channel; the names of the outputs, in order."""

    mean: list[float]  # of pixels from 0 to 1
    std: list[float]
    classes: list[str]


def today() -> str:
    """Return the date in UTC, e.g. `2026-11-29`."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def model_card(
    study: StudyRecord,
    point: FrontPoint,
    specification: ModelSpecification,
    proof: Proof,
    preprocessing: Preprocessing | None,
) -> str:
    """Render the model card of an exported trial.

    Args:
        study: the records.
        point: the trial.
        specification: of its network.
        proof: what was measured on the files.
        preprocessing: of its images; None where the data set was not at hand.

    Returns:
        The card as Markdown. Text from the data set and the study stays within its line.
    """
    if preprocessing is not None:
        preprocessing = replace(preprocessing, classes=[_one_line(name) for name in preprocessing.classes])
    images = validation_images(study)
    batches = sorted({latency.batch for latency in proof.latencies})
    return render_template(
        PACKAGE, TEMPLATE, study=_one_line(study.name), point=point, specification=specification,
        network=specification.network, proof=proof, preprocessing=preprocessing,
        question=_one_line(study.header.get("question", "")),
        val_images=images, interval=wilson_interval(point.error, images) if images else None, batches=batches,
        repeats=_repeats(proof, batches), speeds=_speeds(proof, batches), training=_training(study, point),
        factorised=FACTORISED, merged=MERGED,
    )  # fmt: skip


def _speeds(proof: Proof, batches: list[int]) -> list[dict[str, Any]]:
    """A row for each network: its name, size, mult-adds, and the median latency at each of `batches`."""
    medians = {(latency.name, latency.batch): latency.median_ms for latency in proof.latencies}
    return [
        {
            "name": name,
            "bytes": proof.sizes.get(name),
            "mult_adds": proof.mult_adds.get(name),
            "medians": [medians[name, batch] for batch in batches],
        }
        for name in dict.fromkeys(latency.name for latency in proof.latencies)
    ]


def _repeats(proof: Proof, batches: list[int]) -> str:
    """How often the first network was timed, e.g. `50 at batch 1, 20 at batch 64`."""
    repeats = {latency.batch: latency.repeats for latency in reversed(proof.latencies)}
    return ", ".join(f"{repeats[batch]} at batch {batch}" for batch in batches)


def _training(study: StudyRecord, point: FrontPoint) -> dict[str, Any]:
    """How the trial was trained, by name; what is not on record is left out."""
    specification = study.trials[point.trial_id].specification
    train, data = specification.get("train", {}), specification.get("data", {})
    facts = {
        "data": f"{data.get('name')} (fingerprint {data.get('fingerprint')})", "epochs": train.get("epochs"),
        "recipe": ", ".join(f"{key} {value}" for key, value in train.items() if value is not None),
        "seed": specification.get("seed"), "commit": study.header.get("commit"),
        "command": study.header.get("command"),
    }  # fmt: skip
    return {name: _one_line(value) for name, value in facts.items() if value not in (None, "")}


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
