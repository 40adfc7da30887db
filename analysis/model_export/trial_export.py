"""Export one trained trial: six files, measurements on them, and a model card.

The six files are the factorised and the merged network, each as safetensors, as a `torch.export` program and as ONNX
(lowrank.deployment.formats).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.model_export.model_card import Proof, model_card, was_trained_here
from analysis.model_export.select_trial import TrainedTrial
from analysis.stats import FrontPoint
from lowrank.compression import measure_file_size, network_plan, network_to_count
from lowrank.data import ImageData, eval_batches
from lowrank.deployment import (
    CARD_FILE,
    FACTORISED,
    MERGED,
    ONNX,
    PREPROCESSING_FILE,
    PROGRAM,
    Batches,
    Export,
    Latency,
    check_exportable,
    describe_machine,
    export_formats,
    measure_latency,
    merged_network,
    onnx_forward,
    split_batches,
    today,
)
from lowrank.io import ModelSpecification
from lowrank.layers import Dense, Separable
from lowrank.utils import atomic_folder, check_output_folder, make_output_parents, relative_path, write_text
from sweeps.records import StudyRecord

PROOF_FILE = "proof.json"
RANDOM_IMAGES = 256  # to compare on where the data set is not on this machine
CHECKED_IMAGES = 8  # random ones, on which the network and a copy of it run before anything is written
BATCH = 256
STEPS = 9  # of the progress bar: six files, latency at two batch sizes, the model card


def export_trial(
    study: StudyRecord, point: FrontPoint, trained: TrainedTrial, data: ImageData | None, folder: Path,
    step: Callable[[str], None], *, opset: int,
) -> Proof:  # fmt: skip
    """Write the six files, `proof.json` with the measurements, and the model card.

    The folder comes whole or not at all.

    Args:
        study: the records.
        point: the trial to export.
        trained: its network.
        data: the data set, on whose validation split the outputs are compared; None for random images.
        folder: where the files are written; an earlier export there is replaced.
        step: called with the name of each of the `STEPS` before it.
        opset: of the ONNX files.

    Returns:
        What was measured on the files.

    Raises:
        InputError: `folder` holds something else than an earlier export, or cannot be written; or the network does
            what no exported form can do.
        OSError: the disk is full.
    """
    check_output_folder(folder, PROOF_FILE, "an earlier export")
    specification, network = trained.specification, trained.network
    check_exportable(network, _random_images(specification, CHECKED_IMAGES))
    make_output_parents(folder)
    description, batches = _comparison_images(specification, data)
    with atomic_folder(folder, replace=True) as temporary:
        export = export_formats(
            network, specification, batches, temporary, step, preprocessing=trained.preprocessing, opset=opset
        )
        latencies = _latencies(network, specification, export, temporary, step)
        step("card")
        sizes, mult_adds = _baseline_sizes(specification)
        for file in export.files:
            name = f"{file.network}, ONNX Runtime" if file.kind == ONNX else file.network
            if file.kind != PROGRAM:  # it has the same network as the safetensors file, whose size is listed
                sizes[name], mult_adds[name] = file.bytes, file.mult_adds
        proof = Proof(
            study=study.name, trial_id=point.trial_id, setting=point.name, params=point.params, images=description,
            export=export, recorded_error=point.own_error, trained_here=was_trained_here(point), sizes=sizes,
            mult_adds=mult_adds, latencies=tuple(latencies),
            machine=describe_machine(latencies), date=today(),
        )  # fmt: skip
        write_text(temporary / PROOF_FILE, json.dumps(proof.as_record(), indent=1) + "\n")
        if trained.preprocessing is not None:
            write_text(temporary / PREPROCESSING_FILE, trained.preprocessing.model_dump_json(indent=1) + "\n")
        write_text(temporary / CARD_FILE, model_card(study, point, specification, proof, trained.preprocessing))
    return proof


def _comparison_images(specification: ModelSpecification, data: ImageData | None) -> tuple[str, Batches]:
    """Return the images to compare on, described in words and in batches: the validation split, else random ones."""
    if data is None:
        images = _random_images(specification, RANDOM_IMAGES)
        return f"{RANDOM_IMAGES} random images (the data set was not at hand)", split_batches(images, None)
    batches = ((images.contiguous(), labels) for images, labels, *_ in eval_batches(data, "val", "cpu", BATCH))
    return f"the {len(data.val):,} validation images", batches


def _random_images(specification: ModelSpecification, count: int) -> Tensor:
    return torch.randn(count, *specification.image_shape, generator=torch.Generator().manual_seed(0))


def _baseline_networks(specification: ModelSpecification) -> dict[str, nn.Module]:
    """Build the dense and the separable network of the same width, untrained and merged, to time them."""
    methods = {"dense": Dense(), "separable": Separable()}
    return {
        name: merged_network(specification.model_copy(update={"method": method, "allocation": None}).build())
        for name, method in methods.items()
    }


def _latencies(
    network: nn.Module, specification: ModelSpecification, export: Export, folder: Path, step: Callable[[str], None]
) -> list[Latency]:
    networks: dict[str, Callable[[Tensor], Tensor]] = {FACTORISED: network}
    if any(file.network == MERGED for file in export.files):
        networks[MERGED] = merged_network(network)
    networks |= _baseline_networks(specification)
    for file in export.files:
        if file.kind == ONNX:
            networks[f"{file.network}, ONNX Runtime"] = onnx_forward(folder / file.file)
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
        Lines about the trial, each file and whether its outputs are the model's, the latencies, and what is not as it
        should be.
    """
    seeds = f" ({point.error:.2f} % in the mean of {point.seeds} seeds)" if point.seeds > 1 else ""
    lines = [
        f"trial {point.trial_id}: {point.name}, {point.params:,} parameters, {point.own_error:.2f} % validation error"
        f"{seeds}"
    ]
    lines.append(f"largest difference of logits from the trained network on {proof.images}, and error of each file:")
    for file in proof.export.files:
        error = "" if file.error is None else f", {file.error:.2f} % error"
        verdict = "same" if file.matches else "NOT THE SAME"
        lines.append(f"  {file.file:24} {file.bytes:>11,} bytes, difference {file.difference:.1e}{error}: {verdict}")
    lines.append(f"latency, medians in ms ({proof.machine})")
    for name in dict.fromkeys(latency.name for latency in proof.latencies):
        medians = [latency for latency in proof.latencies if latency.name == name]
        times = ", ".join(f"batch {latency.batch}: {latency.median_ms:.2f}" for latency in medians)
        lines.append(f"  {name:24} {times}")
    lines += [f"error: {problem}" for problem in proof.problems]
    lines.append(f"written into {relative_path(folder)}; start with {CARD_FILE}")
    return lines
