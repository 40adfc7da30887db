"""The model card of an exported network: how good its files are, what they take and give, how fast, how to use them.

`lowrank.compress` and the export of a study's trial share it; each adds what it knows beside.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lowrank.deployment.formats import (
    FACTORISED,
    IR_VERSIONS,
    MAX_BATCH,
    MERGED,
    OLDEST_RUNTIMES,
    ONNX,
    PREPROCESSING_FILE,
    PROGRAM,
    SAFETENSORS,
    Export,
)
from lowrank.deployment.latency import Latency
from lowrank.io import ImagePreprocessing, ModelSpecification
from lowrank.networks import is_own_code
from lowrank.utils import Markdown, render_template

PACKAGE, TEMPLATE = "lowrank.deployment", "templates/model_card.md.j2"
CARD_FILE = "README.md"
DIGITS = 6  # decimals of mean and deviation on the card


@dataclass(frozen=True, kw_only=True)
class CardContent:
    """What a model card says.

    Attributes:
        title: of the card, one line.
        quality: lines on how good the network is; the first is on the files themselves.
        introduction: lines on where the network comes from.
        images: the images that the files were compared on, in words.
        specification: of the network.
        preprocessing: what it expects of an image; None where that is not on record.
        export: the files.
        latencies: of the networks.
        sizes: bytes on disk, by network.
        mult_adds: for one image, by network.
        machine: on which the latencies were measured.
        date: of the export.
        sections: further sections in Markdown, by title.
    """

    title: str
    quality: Sequence[str]
    introduction: Sequence[str]
    images: str
    specification: ModelSpecification
    preprocessing: ImagePreprocessing | None
    export: Export
    latencies: Sequence[Latency]
    sizes: Mapping[str, int] = field(default_factory=dict)
    mult_adds: Mapping[str, int] = field(default_factory=dict)
    machine: str
    date: str
    sections: Mapping[str, str] = field(default_factory=dict)


def today() -> str:
    """Return the date.

    Returns:
        In UTC, e.g. `2026-11-29`.
    """
    return time.strftime("%Y-%m-%d", time.gmtime())


def render_card(content: CardContent) -> str:
    """Render a model card.

    Args:
        content: what it says.

    Returns:
        The card as Markdown. Text from a data set or a study stays within its line.
    """
    batches = sorted({latency.batch for latency in content.latencies})
    export, name = content.export, content.specification.network.name
    return render_template(
        PACKAGE, TEMPLATE, card=content, title=_one_line(content.title), export=export,
        quality=[_one_line(line) for line in content.quality],
        introduction=[_one_line(line) for line in content.introduction], problems=export.problems,
        largest_logit=max((file.largest_logit for file in export.files), default=0.0),
        shape=content.specification.image_shape, classes=content.specification.classes, max_batch=MAX_BATCH,
        images=_image_lines(content), source=_one_line(content.preprocessing.source) if content.preprocessing else "",
        class_names=_class_names(content.preprocessing), preprocessing_file=PREPROCESSING_FILE,
        ir_version=IR_VERSIONS[export.opset], oldest_runtime=OLDEST_RUNTIMES[export.opset],
        torch_version=torch.__version__.partition("+")[0], batches=batches,
        repeats=_repeats(content.latencies, batches), speeds=_speeds(content, batches),
        own_code=name if is_own_code(name) else None, usage=Markdown(_usage(content)),
        predict_command=_predict_command(content),
        sections={title: Markdown(text) for title, text in content.sections.items()},
    )  # fmt: skip


def _image_lines(content: CardContent) -> list[str]:
    """How an image file becomes an input, step by step; the last step in the code of the card."""
    preprocessing = content.preprocessing
    if preprocessing is None or preprocessing.mean is None or preprocessing.std is None:
        return []
    height, width = content.specification.image_shape[1:]
    if preprocessing.image_size is None:
        size = f"{height} x {width} pixels, not resized"
    else:
        share = "" if preprocessing.crop == 1 else f", {100 * preprocessing.crop:.3g} % of the shorter side,"
        whole = {"crop": f"middle square{share}", "squash": "whole image", "pad": "image with black bars"}
        size = f"{whole[preprocessing.resize]} resized to {height} x {width} pixels ({preprocessing.interpolation})"
    low, high = preprocessing.value_range
    mean, std = _statistics(preprocessing)
    return [
        size, f"channels: {'grey' if content.specification.image_shape[0] == 1 else preprocessing.channel_order}",
        f"values: 0 to 255 become {low:g} to {high:g}", f"then the mean is subtracted: {mean}",
        f"and divided by the deviation: {std}",
    ]  # fmt: skip


def _statistics(preprocessing: ImagePreprocessing) -> tuple[list[float], list[float]]:
    """Mean and deviation by channel, as they are printed."""
    mean, std = preprocessing.mean or (), preprocessing.std or ()
    return [round(value, DIGITS) for value in mean], [round(value, DIGITS) for value in std]


def _class_names(preprocessing: ImagePreprocessing | None) -> Markdown | None:
    """The classes as one line of JSON, which no name can leave."""
    if preprocessing is None or preprocessing.classes is None:
        return None
    text = json.dumps(list(preprocessing.classes), ensure_ascii=False).replace("<", "\\u003c")
    return Markdown("".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text))


def _usage(content: CardContent) -> str:
    """Python code that loads the files that were written, and runs as it stands in their folder."""
    specification, preprocessing = content.specification, content.preprocessing
    shape = ", ".join(map(str, specification.image_shape))
    name = specification.network.name
    trust = f", trusted_network={name!r}" if is_own_code(name) else ""
    written = {(file.network, file.kind) for file in content.export.files}
    lines = ["import torch", ""]
    if images := _image_lines(content):
        assert preprocessing is not None
        mean, std = _statistics(preprocessing)
        low, high = preprocessing.value_range
        scaled = f"pixels / 255 * {high - low:g} + {low:g}" if (low, high) != (0, 1) else "pixels / 255"
        lines += [
            f"pixels = torch.zeros(1, {shape}, dtype=torch.uint8)  # yours: (B, C, H, W), {images[0]}",
            f"mean, std = torch.tensor({mean}), torch.tensor({std})",
            f"images = ({scaled} - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)",
        ]
    else:
        lines.append(f"images = torch.zeros(1, {shape})  # yours, normalised")
    for network in (MERGED, FACTORISED):
        if (network, PROGRAM) in written:
            lines += ["", "# torch alone", f'logits = torch.export.load("{network}.pt2").module()(images)']
            break
    for network in (MERGED, FACTORISED):
        if (network, ONNX) in written:
            lines += [
                "", "# or ONNX Runtime", "import onnxruntime",
                f'session = onnxruntime.InferenceSession("{network}.onnx")',
                'logits, = session.run(["logits"], {"images": images.numpy()})',
            ]  # fmt: skip
            break
    loaders = {FACTORISED: "load_model", MERGED: "load_merged"}
    tensors = [network for network in loaders if (network, SAFETENSORS) in written]
    if tensors:
        code = ": your module, which must be importable" if trust else ""
        lines += ["", f"# or this project, whose networks train on{code}"]
        lines.append(f"from lowrank.io import {', '.join(sorted(loaders[network] for network in tensors))}")
        lines += [f'network = {loaders[network]}("{network}.safetensors"{trust})' for network in tensors]
        lines.append("logits = network(images)")
    return "\n".join(lines)


def _predict_command(content: CardContent) -> Markdown | None:
    """The command that classifies image files; None where no file that it reads says what it expects of an image."""
    written = {(file.network, file.kind) for file in content.export.files}
    files = [f"{network}.safetensors" for network in (FACTORISED, MERGED) if (network, SAFETENSORS) in written]
    if content.preprocessing is None or not files:
        return None
    trust = ["--allow-code"] if is_own_code(content.specification.network.name) else []
    return Markdown(shlex.join(["python", "-m", "lowrank.predict", files[0], "PATH", *trust]))


def _speeds(content: CardContent, batches: Sequence[int]) -> list[dict[str, object]]:
    """A row for each network: its name, size, mult-adds, and the median latency at each of `batches`."""
    medians = {(latency.name, latency.batch): latency.median_ms for latency in content.latencies}
    return [
        {
            "name": name,
            "bytes": content.sizes.get(name),
            "mult_adds": content.mult_adds.get(name),
            "medians": [medians[name, batch] for batch in batches],
        }
        for name in dict.fromkeys(latency.name for latency in content.latencies)
    ]


def _repeats(latencies: Sequence[Latency], batches: Sequence[int]) -> str:
    """How often the first network was timed, e.g. `50 at batch 1, 20 at batch 64`."""
    repeats = {latency.batch: latency.repeats for latency in reversed(latencies)}
    return ", ".join(f"{repeats[batch]} at batch {batch}" for batch in batches)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
