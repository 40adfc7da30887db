"""Export one trained trial: six files, measurements on them, and a model card.

The six files are the factorised and the merged network, each as safetensors, as a `torch.export` program and as ONNX
(lowrank.deployment.formats).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.model_export.model_card import Preprocessing, Proof, model_card, today
from analysis.stats import FrontPoint
from lowrank.compression import measure_file_size, network_plan, network_to_count
from lowrank.data import ImageData, eval_batches
from lowrank.deployment import (
    FACTORISED,
    MERGED,
    ComparisonImages,
    Latency,
    describe_machine,
    export_formats,
    measure_latency,
    merged_network,
    onnx_forward,
)
from lowrank.io import ModelSpecification
from lowrank.layers import Dense, Separable
from lowrank.utils import write_text
from sweeps.records import StudyRecord

CARD_FILE, PROOF_FILE = "README.md", "proof.json"
RANDOM_IMAGES = 256  # to compare on where the data set is not on this machine
STEPS = 9  # of the progress bar: six files, latency at two batch sizes, the model card


def export_trial(
    study: StudyRecord, point: FrontPoint, specification: ModelSpecification, network: nn.Module,
    data: ImageData | None, folder: Path, step: Callable[[str], None],
) -> Proof:  # fmt: skip
    """Write the six files, `proof.json` with the measurements, and the model card.

    Args:
        study: the records.
        point: the trial to export.
        specification: describes the trial's network.
        network: the trained network, in evaluation mode.
        data: the data set, on whose validation split the outputs are compared; None for random images.
        folder: an existing folder, into which the files are written.
        step: called with the name of each of the `STEPS` before it.

    Returns:
        What was measured on the files.

    Raises:
        OSError: a file cannot be written.
    """
    description, images = _comparison_images(specification, data)
    files = export_formats(network, specification, images, folder, step)
    latencies = _latencies(network, specification, folder, step)
    step("card")
    sizes, mult_adds = _baseline_sizes(specification)
    for file in files:
        name = f"{file.network}, ONNX Runtime" if file.kind == "ONNX" else file.network
        if file.kind != "torch.export":  # it has the same network as the safetensors file, whose size is listed
            sizes[name], mult_adds[name] = file.bytes, file.mult_adds
    proof = Proof(
        study=study.name, trial_id=point.trial_id, setting=point.name, params=point.params, images=description,
        forms=tuple(files), sizes=sizes, mult_adds=mult_adds, latencies=tuple(latencies), machine=describe_machine(),
        date=today(),
    )  # fmt: skip
    write_text(folder / PROOF_FILE, json.dumps({**asdict(proof), "equal": proof.equal}, indent=1) + "\n")
    write_text(folder / CARD_FILE, model_card(study, point, specification, proof, _preprocessing(data)))
    return proof


def _preprocessing(data: ImageData | None) -> Preprocessing | None:
    if data is None:
        return None
    mean, std = ([round(value, 6) for value in values] for values in (data.mean, data.std))
    return Preprocessing(mean=mean, std=std, classes=[str(name) for name in data.classes])


def _comparison_images(specification: ModelSpecification, data: ImageData | None) -> tuple[str, ComparisonImages]:
    """Return the images to compare on, described in words and as tensors: the validation split, else random ones."""
    if data is None:
        images = torch.randn(RANDOM_IMAGES, *specification.image_shape, generator=torch.Generator().manual_seed(0))
        description = f"{RANDOM_IMAGES} random images (the data set was not at hand)"
        return description, ComparisonImages(images=images, labels=None)
    batches = [(images, labels) for images, labels, *_ in eval_batches(data, "val", "cpu", 256)]
    images = torch.cat([images for images, _ in batches]).contiguous()
    labels = torch.cat([labels for _, labels in batches])
    return f"the {len(images):,} validation images", ComparisonImages(images=images, labels=labels)


def _baseline_networks(specification: ModelSpecification) -> dict[str, nn.Module]:
    """Build the dense and the separable network of the same width, untrained and merged, to time them."""
    methods = {"dense": Dense(), "separable": Separable()}
    return {
        name: merged_network(specification.model_copy(update={"method": method, "allocation": None}).build())
        for name, method in methods.items()
    }


def _latencies(
    network: nn.Module, specification: ModelSpecification, folder: Path, step: Callable[[str], None]
) -> list[Latency]:
    networks: dict[str, Any] = {
        FACTORISED: network,
        MERGED: merged_network(network),
        **_baseline_networks(specification),
    }
    networks |= {f"{name}, ONNX Runtime": onnx_forward(folder / f"{name}.onnx") for name in (FACTORISED, MERGED)}
    return measure_latency(networks, specification.image_shape, step=step)


def _baseline_sizes(specification: ModelSpecification) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes as safetensors, and the mult-adds, of the dense and the separable network."""
    shape, classes = specification.image_shape, specification.classes
    plan = network_plan(specification.network, shape, classes)
    sizes: dict[str, int] = {}
    mult_adds: dict[str, int] = {}
    for method in (Dense(), Separable()):
        network = network_to_count(specification.network, shape, classes)
        sizes[method.name] = measure_file_size(network, plan, method).bytes
        mult_adds[method.name] = plan.mult_adds(method)
    return sizes, mult_adds


def proof_lines(point: FrontPoint, proof: Proof, folder: Path) -> list[str]:
    """Return the lines that the command prints about an export.

    Args:
        point: the trial that was exported.
        proof: what was measured on the files.
        folder: where they were written.

    Returns:
        Lines about the trial, each file and whether its outputs are the model's, and the latencies.
    """
    lines = [f"trial {point.trial_id}: {point.name}, {point.params:,} parameters, {point.error:.2f} % validation error"]
    lines.append(f"compared on {proof.images}; largest logit {proof.largest_logit:.3g}")
    for file in proof.forms:
        error = "" if file.error is None else f", {file.error:.2f} % error"
        verdict = "same" if file.equal else "NOT THE SAME"
        lines.append(f"  {file.file:24} {file.bytes:>11,} bytes, difference {file.difference:.1e}{error}: {verdict}")
    lines.append(f"latency, medians in ms ({proof.machine})")
    for name in dict.fromkeys(latency.name for latency in proof.latencies):
        medians = [latency for latency in proof.latencies if latency.name == name]
        times = ", ".join(f"batch {latency.batch}: {latency.median_ms:.2f}" for latency in medians)
        lines.append(f"  {name:24} {times}")
    lines.append(f"written into {folder}; start with {CARD_FILE}")
    return lines
