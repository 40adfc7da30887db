"""Exports a trained model in all formats, reads each file back, and compares its outputs with the model's.

There are two networks: the factorised one as it was trained, and the merged one of plain depthwise and 1 x 1
convolutions. Each is written as safetensors, as a `torch.export` program and as ONNX. Letters: B batch, K classes.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression import count_mult_adds, merge, trace_plan
from lowrank.io import ModelSpecification, load_merged, load_model, save_merged, write_model
from lowrank.layers import Dense

FACTORISED, MERGED = "factorised", "merged"
INPUT, OUTPUT = "images", "logits"
MAX_BATCH = 4096  # images in one batch of an exported program
MAX_CONSTANT = 1024  # numbers in a constant that is computed when an ONNX file is written
TOLERANCE = 1e-3  # of the largest logit: float32 rounding when sums are taken in another order

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One exported file, compared with the trained model on all images.

    Attributes:
        network: factorised or merged.
        kind: safetensors, torch.export or ONNX.
        file: its name.
        bytes: its size.
        difference: the largest absolute difference of a logit.
        largest: the largest absolute logit of the trained model.
        agree: share of images with the same class, 0 to 1.
        error: error in percent; None without labels.
        mult_adds: for one image.
    """

    network: str
    kind: str
    file: str
    bytes: int
    difference: float
    largest: float
    agree: float
    error: float | None
    mult_adds: int

    @property
    def equal(self) -> bool:
        """Whether the outputs equal those of the trained model, up to rounding."""
        return self.difference <= TOLERANCE * max(self.largest, 1.0)


@dataclass(frozen=True, kw_only=True)
class ComparisonImages:
    """Images that exported files are compared on.

    Attributes:
        images: (B, C, H, W), normalised.
        labels: (B); None for random images.
    """

    images: Tensor
    labels: Tensor | None


def merged_network(network: nn.Module) -> nn.Module:
    """Copy a network and merge its structured layers.

    Depthwise and pointwise maps stay apart, which costs less.

    Args:
        network: the factorised network; it is not changed.

    Returns:
        The merged copy in evaluation mode.
    """
    return merge(copy.deepcopy(network), combined=False).eval()


def running_mult_adds(network: nn.Module, specification: ModelSpecification) -> int:
    """Count the mult-adds that a network of plain convolutions runs for one image.

    Args:
        network: the network.
        specification: gives the shape of its images.

    Returns:
        Mult-adds.
    """
    if specification.layers:
        return count_mult_adds(network, torch.zeros(1, *specification.image_shape))
    return trace_plan(network, specification.image_shape).mult_adds(Dense())


def export_formats(
    network: nn.Module,
    specification: ModelSpecification,
    probe: ComparisonImages,
    folder: Path,
    step: Callable[[str], None],
) -> list[ExportedFile]:
    """Write all six files and compare the outputs of each with the network's.

    Each file is read back before.

    Args:
        network: the factorised network as it was trained.
        specification: what describes it.
        probe: images to compare on.
        folder: where to write.
        step: called with the name of each file before it is written.

    Returns:
        The files with their differences.

    Raises:
        OSError: a file cannot be written.
    """
    network = network.eval()
    merged = merged_network(network)
    work = running_mult_adds(merged, specification)
    expected = run_batches(network, probe.images)
    writers: dict[str, Callable[[str, nn.Module, Path], Forward]] = {
        "safetensors": lambda name, model, path: _as_tensors(name, model, specification, path),
        "torch.export": lambda name, model, path: _as_program(model, specification, path),
        "ONNX": lambda name, model, path: _as_onnx(model, specification, path),
    }
    endings = {"safetensors": "safetensors", "torch.export": "pt2", "ONNX": "onnx"}
    files = []
    for name, model in ((FACTORISED, network), (MERGED, merged)):
        for kind, write in writers.items():
            step(f"{name}, {kind}")
            path = folder / f"{name}.{endings[kind]}"
            forward = write(name, model, path)
            count = work if name == MERGED else specification.mult_adds()
            files.append(_compare(name, kind, path, run_batches(forward, probe.images), expected, probe.labels, count))
    return files


def run_batches(forward: Forward, images: Tensor, size: int = 256) -> Tensor:
    """Run a network on images, one batch after the other.

    Args:
        forward: the network.
        images: (B, C, H, W).
        size: of a batch.

    Returns:
        Logits (B, K), float32.
    """
    with torch.no_grad():
        return torch.cat([forward(part).float() for part in images.split(size)])


def _compare(
    name: str, kind: str, path: Path, logits: Tensor, expected: Tensor, labels: Tensor | None, mult_adds: int
) -> ExportedFile:
    classes = logits.argmax(1)
    return ExportedFile(
        network=name, kind=kind, file=path.name, bytes=path.stat().st_size,
        difference=float((logits - expected).abs().max()), largest=float(expected.abs().max()),
        agree=float((classes == expected.argmax(1)).double().mean()),
        error=None if labels is None else 100 * float((classes != labels).double().mean()), mult_adds=mult_adds,
    )  # fmt: skip


def _as_tensors(name: str, model: nn.Module, specification: ModelSpecification, path: Path) -> Forward:
    if name == MERGED:
        save_merged(path, model, specification, combined=False)
        return load_merged(path)
    write_model(path, model, specification)
    name = specification.network.name
    return load_model(path, trusted_network=name if ":" in name else None)


def _as_program(model: nn.Module, specification: ModelSpecification, path: Path) -> Forward:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with _quiet(), torch.no_grad():
        program = torch.export.export(model, (_example(specification),), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
        torch.export.save(program, path)
        loaded: nn.Module = torch.export.load(path).module()
    return loaded


def _as_onnx(model: nn.Module, specification: ModelSpecification, path: Path) -> Forward:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with _quiet(), torch.no_grad(), redirect_stdout(io.StringIO()):  # the exporter prints its progress
        program = torch.onnx.export(
            model, (_example(specification),), dynamo=True, dynamic_shapes=({0: batch},), input_names=[INPUT],
            output_names=[OUTPUT], verbose=False, optimize=False,
        )  # fmt: skip
        assert program is not None
        _simplify(program.model)
        program.save(path, external_data=False)
    return onnx_forward(path)


def _simplify(model: Any) -> None:
    """Drop nodes that no output depends on, and metadata that names folders of this machine.

    Only small constants are folded. The exporter's own pass would multiply factors and store the product; ONNX Runtime
    does that when it loads the file.
    """
    from onnxscript import optimizer

    optimizer.optimize(model, output_size_limit=MAX_CONSTANT)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values += [node, *node.outputs]
    for value in values:
        value.metadata_props.clear()


def onnx_forward(path: Path, threads: int | None = None) -> Forward:
    """Load an ONNX file as a function, run by ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: how many it uses; None for as many as torch.

    Returns:
        A function from images (B, C, H, W) to logits (B, K).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.contiguous().numpy()})[0])

    return forward


def _example(specification: ModelSpecification) -> Tensor:
    return torch.zeros(4, *specification.image_shape)  # not one image: the exporters would take a batch of one as fixed


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' deprecation warnings and log lines, which concern their own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
