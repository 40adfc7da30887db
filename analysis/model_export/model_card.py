"""What a study adds to the model card of an exported trial, and everything that was measured while exporting."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from html import escape

from analysis.stats import FrontPoint, validation_images, wilson_interval
from lowrank.deployment import CardContent, Export, Latency, render_card
from lowrank.io import ImagePreprocessing, ModelSpecification
from sweeps.records import StudyRecord

LIMITS = (
    "It was trained and validated on this one data set; on other images nothing is known of it. The validation error "
    "chose it among other trials, so it looks better there than it is, and its interval does not pay for that; where "
    "there is a test error, that is the one to quote. Latencies hold for the machine named above."
)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Everything that was measured while exporting.

    Attributes:
        study: the study's name.
        trial_id: of the trial.
        setting: the trial's, in words.
        params: its parameters.
        images: those that the outputs were compared on, in words.
        export: the files.
        recorded_error: the validation error that the study recorded of this trial, in percent.
        trained_here: whether it was trained on this machine and on the CPU, where nothing is rounded otherwise.
        sizes: bytes on disk, by network.
        mult_adds: for one image, by network.
        latencies: of the networks.
        machine: on which they were measured.
        date: of the export.
    """

    study: str
    trial_id: str
    setting: str
    params: int
    images: str
    export: Export
    recorded_error: float
    trained_here: bool
    sizes: dict[str, int]
    mult_adds: dict[str, int]
    latencies: tuple[Latency, ...]
    machine: str
    date: str

    @property
    def problems(self) -> list[str]:
        """A line for everything that is not as it should be: the export succeeded if there is none."""
        return [*self.export.problems, *self._error_problem()]

    def _error_problem(self) -> list[str]:
        """Compare the measured error with the recorded one, if the trial's own images were at hand.

        Another processor rounds the logits of one image in a thousand otherwise, a GPU and half precision those of
        five.
        """
        measured = self.export.error
        if measured is None:
            return []
        images = self.export.images
        allowed = images // 1000 if self.trained_here else max(1, 5 * images // 1000)
        difference = round(abs(measured - self.recorded_error) / 100 * images)
        if difference <= allowed:
            return []
        return [
            f"the network has {measured:.2f} % validation error, but the study recorded {self.recorded_error:.2f} %: "
            f"its weights are not those that were measured"
        ]

    def as_record(self) -> dict[str, object]:
        """Return what `proof.json` holds."""
        forms = [
            {
                "network": file.network, "kind": file.kind, "file": file.file, "bytes": file.bytes,
                "difference": file.difference, "largest": file.largest_logit, "agree": file.agreement,
                "widest_change": file.widest_change, "error": file.error, "mult_adds": file.mult_adds,
            }
            for file in self.export.files
        ]  # fmt: skip
        return {
            "study": self.study, "trial_id": self.trial_id, "setting": self.setting, "params": self.params,
            "images": self.images, "forms": forms, "sizes": self.sizes, "mult_adds": self.mult_adds,
            "latencies": [asdict(latency) for latency in self.latencies], "machine": self.machine, "date": self.date,
            "equal": all(file.matches for file in self.export.files), "problems": self.problems,
            "measured_error": self.export.error, "recorded_error": self.recorded_error, "opset": self.export.opset,
        }  # fmt: skip


def was_trained_here(point: FrontPoint) -> bool:
    """Tell whether a trial was trained on this machine and on the CPU.

    Args:
        point: the trial.

    Returns:
        False also where that is not on record.
    """
    return point.device == "cpu" and point.host == platform.node()


def model_card(
    study: StudyRecord,
    point: FrontPoint,
    specification: ModelSpecification,
    proof: Proof,
    preprocessing: ImagePreprocessing | None,
) -> str:
    """Render the model card of an exported trial.

    Args:
        study: the records.
        point: the trial.
        specification: of its network.
        proof: what was measured on the files.
        preprocessing: what its network expects of an image; None where that is not on record.

    Returns:
        The card as Markdown. Text from the data set and the study stays within its line.
    """
    network = specification.network
    width = f" of width {network.width:g}" if network.width != 1 else ""
    share = f", {100 * point.ratio:.1f} % of its separable form's" if point.ratio else ""
    question = study.header.question
    shape = " x ".join(map(str, specification.image_shape))
    content = CardContent(
        title=f"{network.name}{width}, {point.name}", quality=_quality(study, point, proof),
        introduction=[
            f"Trial {point.trial_id} of the study {study.name}{f': {question}' if question else '.'}",
            f"A classifier of {shape} images into {specification.classes} classes with {point.params:,} parameters"
            f"{share}.",
        ],
        images=proof.images, specification=specification, preprocessing=preprocessing, export=proof.export,
        latencies=proof.latencies, sizes=proof.sizes, mult_adds=proof.mult_adds, machine=proof.machine,
        date=proof.date, sections={"Training": _training(study, point), "Limits": LIMITS},
    )  # fmt: skip
    return render_card(content)


def _quality(study: StudyRecord, point: FrontPoint, proof: Proof) -> list[str]:
    """How good the files are: their own error first, then that of the setting's other seeds."""
    measured, images = proof.export.error, validation_images(study)
    if measured is not None:
        low, high = wilson_interval(measured, proof.export.images)
        lines = [
            f"Validation error of these files: {measured:.2f} %, measured on {proof.images} (95 % Wilson interval "
            f"{low:.2f} to {high:.2f}); the study recorded {proof.recorded_error:.2f} %."
        ]
    else:
        interval = wilson_interval(proof.recorded_error, images) if images else None
        certainty = f" (95 % Wilson interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        lines = [
            f"Validation error of this trial: {proof.recorded_error:.2f} %{certainty}, as the study recorded it; the "
            f"images were not at hand to measure it again."
        ]
    if point.seeds > 1:
        spread = "" if point.spread is None else f", deviation {point.spread:.2f}"
        lines.append(f"Mean over the {point.seeds} seeds of this setting: {point.error:.2f} %{spread}.")
    if point.test_error is not None:
        lines.append(f"Test error of this trial: {point.test_error:.2f} %.")
    of_files = proof.export.problems  # stand below the table of the files
    return lines + [f"**{problem}**" for problem in proof.problems if problem not in of_files]


def _training(study: StudyRecord, point: FrontPoint) -> str:
    """How the trial was trained, as a Markdown list; what is not on record is left out."""
    facts: dict[str, object] = {"commit": study.header.commit, "command": study.header.command}
    if (spec := study.trials[point.trial_id].specification) is not None:
        train = spec.train.model_dump(mode="json", exclude_unset=True)
        facts = {
            "data": f"{spec.data.name} (fingerprint {spec.data.fingerprint})", "epochs": spec.train.epochs,
            "recipe": ", ".join(f"{key} {value}" for key, value in train.items() if value is not None),
            "seed": spec.seed, **facts,
        }  # fmt: skip
    lines = {name: " ".join(str(value).split()) for name, value in facts.items() if value not in (None, "")}
    return "\n".join(f"* {name}: {escape(line, quote=False)}" for name, line in lines.items())
