"""The page that goes with an exported model: what it is, how good, how sure, how fast, how to use it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from analysis.stats.front import FrontPoint
from analysis.stats.intervals import wilson_interval
from lowrank.deployment.formats import MERGED, ExportedFile
from lowrank.deployment.latency import Latency
from lowrank.io.model_file import ModelSpecification
from sweeps.records.model import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Everything that was measured while exporting; `sizes` are bytes on disk by network."""

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
        """Whether every form gives the trained model's outputs."""
        return all(form.equal for form in self.forms)


def today() -> str:
    """The date in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def model_card(
    study: StudyRecord, point: FrontPoint, specification: ModelSpecification, proof: Proof, preparation: dict[str, Any]
) -> str:
    """The card as Markdown."""
    shape = " x ".join(map(str, specification.image_shape))
    parts = [
        f"# {_network(specification)}, {point.name}",
        f"Trial `{point.trial_id}` of the study `{study.name}`: {str(study.header.get('question', '')).strip()}",
        "## What it is",
        f"A classifier of {shape} images into {specification.classes} classes with {point.params:,} parameters"
        + (f", {100 * point.ratio:.1f} % of its separable form's." if point.ratio else "."),
        _quality(study, point),
        "## Files", _files(proof), _speed(proof), "## How to use it", _usage(specification, preparation),
        "## Training", _training(study, point), "## Limits",
        "It was trained and validated on this one data set; on other images nothing is known of it. The validation "
        "error chose it among other trials, so it looks a little better there than it is; where there is a test error, "
        "that is the one to quote. Latencies hold for the machine named above.",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _network(specification: ModelSpecification) -> str:
    width = specification.network.width
    return specification.network.name + (f" of width {width:g}" if width != 1 else "")


def _quality(study: StudyRecord, point: FrontPoint) -> str:
    images = study.header.get("data", {}).get("val_images")
    text = f"Validation error {point.error:.2f} %"
    if images:
        low, high = wilson_interval(point.error, int(images))
        text += f" on {int(images):,} images (95 % Wilson interval {low:.2f} to {high:.2f})"
    if point.test_error is not None:
        text += f"; test error {point.test_error:.2f} %, looked at once"
    return f"{text}. Seeds trained: {point.seeds}."


def _files(proof: Proof) -> str:
    head = (
        "| file | bytes | largest difference | same class | validation error | mult-adds |\n|---|---|---|---|---|---|"
    )
    rows = [
        f"| `{form.file}` | {form.bytes:,} | {form.difference:.2g} | {100 * form.agree:.1f} % | "
        f"{'' if form.error is None else f'{form.error:.2f} %'} | {form.mult_adds:,} |"
        for form in proof.forms
    ]
    words = (
        f"Each file was read back and run on {proof.images}; differences are of logits, whose largest is "
        f"{max(form.largest for form in proof.forms):.3g}. *Factorised* is the network as it was trained: its weights "
        "are rebuilt from factors in every forward pass, which its mult-adds do not include. *Merged* holds plain "
        "depthwise and 1 x 1 convolutions: the same function, larger on disk, no rebuilding."
    )
    return "\n".join([words, "", head, *rows])


def _speed(proof: Proof) -> str:
    names = list(dict.fromkeys(latency.name for latency in proof.latencies))
    by_key = {(latency.name, latency.batch): latency for latency in proof.latencies}
    batches = sorted({latency.batch for latency in proof.latencies})
    titles = " | ".join(f"batch {batch}, ms" for batch in batches)
    head = f"| network | bytes | mult-adds | {titles} |\n|---|---|---|{'---|' * len(batches)}"
    rows = []
    for name in names:
        times = " | ".join(f"{by_key[name, batch].median_ms:.2f}" for batch in batches)
        size, work = proof.sizes.get(name), proof.mult_adds.get(name)
        rows.append(
            f"| {name} | {'' if size is None else f'{size:,}'} | {'' if work is None else f'{work:,}'} | {times} |"
        )
    repeats = ", ".join(f"{by_key[names[0], batch].repeats} at batch {batch}" for batch in batches)
    words = f"Medians of repeats ({repeats}), {proof.machine}, {proof.date}; float32, random images."
    return "\n".join([words, "", head, *rows])


def _usage(specification: ModelSpecification, preparation: dict[str, Any]) -> str:
    lines = ["```python", "import torch"]
    if preparation.get("mean"):
        lines += [
            "# images: uint8 (B, C, H, W)",
            f"mean, std = torch.tensor({preparation['mean']}), torch.tensor({preparation['std']})  # of values 0 to 1",
            "images = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)",
        ]
    lines += [
        f'logits = torch.export.load("{MERGED}.pt2").module()(images)  # needs torch alone',
        "",
        "from lowrank.io.model_file import load_merged, load_model  # or with this project: weights that train on",
        'network = load_model("factorised.safetensors")',
        'network = load_merged("merged.safetensors")',
        "",
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{MERGED}.onnx")  # or with ONNX Runtime, B from 1 to 4,096',
        'logits, = session.run(["logits"], {"images": images.numpy()})', "```",
    ]  # fmt: skip
    classes = preparation.get("classes")
    if classes:
        lines += ["", f"Outputs, in this order: {', '.join(map(str, classes))}."]
    return "\n".join(lines)


def _training(study: StudyRecord, point: FrontPoint) -> str:
    spec = study.trials[point.trial_id].specification
    train = spec.get("train", {})
    data = spec.get("data", {})
    known = {
        "data": f"{data.get('name')} (fingerprint {data.get('fingerprint')})", "epochs": train.get("epochs"),
        "recipe": ", ".join(f"{key} {value}" for key, value in train.items() if value is not None),
        "seed": spec.get("seed"), "commit": study.header.get("commit"), "command": study.header.get("command"),
    }  # fmt: skip
    return "\n".join(f"* {name}: {value}" for name, value in known.items() if value not in (None, ""))
