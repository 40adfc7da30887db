"""Exports a trained model in all formats, reads each file back, and compares its outputs with the model's.

There are two networks: the factorised one as it was trained, and the merged one of plain depthwise and 1 x 1
convolutions. Each is written as safetensors, as a `torch.export` program and as ONNX. All six take the same input:
normalised images, float32 (B, C, H, W). Letters: B batch, K classes.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression import count_mult_adds, merge, trace_plan
from lowrank.errors import InputError, unknown
from lowrank.io import (
    PREPROCESSING_KEY,
    ImagePreprocessing,
    ModelSpecification,
    load_merged,
    load_model,
    save_merged,
    write_model,
)
from lowrank.layers import Dense
from lowrank.networks import is_own_code
from lowrank.utils import one_line

FACTORISED, MERGED = "factorised", "merged"
SAFETENSORS, PROGRAM, ONNX = "safetensors", "torch.export", "ONNX"
SUFFIXES = {SAFETENSORS: "safetensors", PROGRAM: "pt2", ONNX: "onnx"}
INPUT, OUTPUT = "images", "logits"
PREPROCESSING_FILE = "preprocessing.json"  # in the folder of an export, and inside of each `torch.export` program
MAX_BATCH = 4096  # images in one batch of an exported program
TRACED_BATCH = 4  # images that a network runs on while it is recorded
FIXED_BATCH = "You marked batch as dynamic but your code specialized it"  # in the words of torch.export
MAX_CONSTANT = 1024  # numbers in a constant that is computed when an ONNX file is written
TOLERANCE = 1e-3  # of the largest logit: float32 rounding when sums are taken in another order
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 10}
"""The least version of ONNX's file format that goes with each opset; the exporter would write 10 with all of them."""
DEFAULT_OPSET = 18
OLDEST_RUNTIMES = {17: "1.15", 18: "1.15", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23"}
"""The oldest ONNX Runtime that reads a file of each opset: tried from 1.15, the first that Python 3.11 has."""

Forward = Callable[[Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor | None]]
"""Images (B, C, H, W), normalised, and their labels (B); None for images without labels."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One exported file, compared with the trained model on all images.

    Attributes:
        network: factorised or merged.
        kind: safetensors, torch.export or ONNX.
        file: its name.
        bytes: its size.
        difference: the largest absolute difference of a logit.
        largest_logit: the largest absolute logit of the trained model.
        agreement: share of images with the same class, 0 to 1.
        widest_change: of the images with another class, the largest margin between the trained model's two highest
            logits; 0 where there are none.
        error: error in percent; None without labels.
        mult_adds: for one image.
    """

    network: str
    kind: str
    file: str
    bytes: int
    difference: float
    largest_logit: float
    agreement: float
    widest_change: float = 0.0
    error: float | None
    mult_adds: int

    @property
    def matches(self) -> bool:
        """Whether the outputs are the trained model's up to rounding, and the classes outside of ties."""
        tolerance = TOLERANCE * self.largest_logit
        return self.difference <= tolerance and self.widest_change <= tolerance


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an export has written.

    Attributes:
        files: the files that were written.
        failures: a line for each file that could not be written, which names it.
        images: how many images the outputs were compared on.
        error: of the trained model on them, in percent; None without labels.
        opset: of the ONNX files.
    """

    files: tuple[ExportedFile, ...]
    failures: tuple[str, ...]
    images: int
    error: float | None
    opset: int

    @property
    def problems(self) -> list[str]:
        """A line for each file that could not be written or does not have the trained model's outputs."""
        differing = [
            f"{file.file}: its outputs differ from the network's by {file.difference:.2g} (largest logit "
            f"{file.largest_logit:.3g}, {100 * file.agreement:.2f} % the same class)"
            for file in self.files
            if not file.matches
        ]
        return [*self.failures, *differing]


@dataclass
class _Comparison:
    """Compares the outputs of one form with those of the trained model, batch by batch."""

    images: int = 0
    difference: float = 0.0
    largest_logit: float = 0.0
    same_class: int = 0
    widest_change: float = 0.0
    wrong: int | None = 0

    def add(self, logits: Tensor, expected: Tensor, labels: Tensor | None) -> None:
        """Take in one batch: logits and expected logits (B, K), labels (B) or None."""
        classes, expected_classes = logits.argmax(1), expected.argmax(1)
        changed = classes != expected_classes
        self.images += len(logits)
        self.difference = max(self.difference, _finite_or_infinite((logits - expected).abs().max()))
        self.largest_logit = max(self.largest_logit, float(expected.abs().max()))
        self.same_class += int((~changed).sum())
        if changed.any():
            highest = expected[changed].topk(2).values
            self.widest_change = max(self.widest_change, float((highest[:, 0] - highest[:, 1]).max()))
        if labels is None:
            self.wrong = None
        elif self.wrong is not None:
            self.wrong += int((classes != labels).sum())

    @property
    def error(self) -> float | None:
        return None if self.wrong is None else 100 * self.wrong / self.images


def _finite_or_infinite(value: Tensor) -> float:
    """A number that can be compared: infinity instead of NaN."""
    return float(value) if math.isfinite(value) else math.inf


@dataclass
class _Form:
    """One file to write: of which network, how it is written and read back, and how its outputs compare."""

    network: str
    kind: str
    write: Callable[[Path], None]
    read: Callable[[Path], Forward]
    mult_adds: int
    forward: Forward | None = None
    comparison: _Comparison = field(default_factory=_Comparison)

    @property
    def file(self) -> str:
        return f"{self.network}.{SUFFIXES[self.kind]}"


def check_opset(opset: int | None) -> int:
    """Check that ONNX files of an opset can be written.

    Args:
        opset: version of ONNX's operators; None for the default.

    Returns:
        The version.

    Raises:
        InputError: it is none of `IR_VERSIONS`.
    """
    if opset is None:
        return DEFAULT_OPSET
    if opset not in IR_VERSIONS:
        raise unknown("opset", str(opset), [str(version) for version in IR_VERSIONS])
    return opset


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


def split_batches(images: Tensor, labels: Tensor | None, size: int = 256) -> Batches:
    """Split images that are in memory into batches.

    Args:
        images: (N, C, H, W), normalised.
        labels: (N); None for images without labels.
        size: of a batch.

    Yields:
        Images and labels of each batch.
    """
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        yield images[rows], None if labels is None else labels[rows]


@torch.no_grad()
def export_formats(
    network: nn.Module,
    specification: ModelSpecification,
    batches: Batches,
    folder: Path,
    step: Callable[[str], None],
    *,
    preprocessing: ImagePreprocessing | None = None,
    opset: int = DEFAULT_OPSET,
) -> Export:
    """Write all six files, read each back, and compare its outputs with the network's.

    A file that cannot be written or read back is named in the result, and the others are written. The images are
    taken once, batch by batch, so that memory does not grow with their number.

    Args:
        network: the factorised network as it was trained.
        specification: what describes it.
        batches: images to compare on.
        folder: where to write.
        step: called with the name of each file before it is written.
        preprocessing: what the network expects of an image, which every file then says; None where nobody knows.
        opset: version of ONNX's operators.

    Returns:
        The files with their differences, and what could not be written.

    Raises:
        InputError: there is no such opset, or the network's own outputs are not finite.
        OSError: the disk is full, or the folder cannot be written.
    """
    check_opset(opset)
    network = network.eval()
    forms, failures = _forms(network, specification, preprocessing, opset)
    written = []
    for form in forms:
        step(f"writing {form.file}")
        path = folder / form.file
        try:
            form.write(path)
            form.forward = form.read(path)
            written.append(form)
        except (OSError, MemoryError):  # of this machine, not of the form
            raise
        except Exception as error:  # exporters and runtimes raise anything
            failures.append(_failure(path, error))
    reference = _compare(network, written, batches, folder, failures)
    files = [
        ExportedFile(
            network=form.network, kind=form.kind, file=form.file, bytes=(folder / form.file).stat().st_size,
            difference=form.comparison.difference, largest_logit=reference.largest_logit,
            agreement=form.comparison.same_class / reference.images, widest_change=form.comparison.widest_change,
            error=form.comparison.error, mult_adds=form.mult_adds,
        )
        for form in written
    ]  # fmt: skip
    return Export(
        files=tuple(files), failures=tuple(failures), images=reference.images, error=reference.error, opset=opset
    )


def _forms(
    network: nn.Module, specification: ModelSpecification, preprocessing: ImagePreprocessing | None, opset: int
) -> tuple[list[_Form], list[str]]:
    """The files to write, and a line for each that cannot be since the network cannot be merged."""
    mult_adds = running_mult_adds(network, specification) if specification.layers else specification.mult_adds()
    networks, failures = [(FACTORISED, network, mult_adds)], []
    try:
        merged = merged_network(network)
        networks.append((MERGED, merged, running_mult_adds(merged, specification)))
    except Exception as error:  # layers of the user's own code raise anything
        failures = [f"{MERGED}.{suffix}: not written: {one_line(error)}" for suffix in SUFFIXES.values()]
    forms = []
    for name, model, mult_adds in networks:
        program = cache(partial(_trace, model, specification))  # of both formats; a failure is raised for each
        writers: dict[str, tuple[Callable[[Path], None], Callable[[Path], Forward]]] = {
            SAFETENSORS: (
                partial(_write_tensors, name, model, specification, preprocessing),
                partial(_read_tensors, name, specification),
            ),
            PROGRAM: (partial(_write_program, program, preprocessing), _read_program),
            ONNX: (partial(_write_onnx, program, preprocessing, opset), onnx_forward),
        }
        forms += [_Form(name, kind, write, read, mult_adds) for kind, (write, read) in writers.items()]
    return forms, failures


def _compare(
    network: nn.Module, forms: list[_Form], batches: Batches, folder: Path, failures: list[str]
) -> _Comparison:
    """Run the network and all forms on each batch; a form that fails leaves `forms` and is added to `failures`."""
    reference = _Comparison()
    for images, labels in batches:
        expected = network(images).float()
        if not bool(torch.isfinite(expected).all()):
            raise InputError("the network cannot be exported: its outputs are not finite numbers")
        reference.add(expected, expected, labels)
        for form in list(forms):
            assert form.forward is not None
            try:
                form.comparison.add(form.forward(images).float(), expected, labels)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # a runtime may lack an operator and say so only here
                failures.append(_failure(folder / form.file, error))
                forms.remove(form)
    return reference


def _failure(path: Path, error: Exception) -> str:
    """Remove what was written of a file, and say in a line why there is none."""
    path.unlink(missing_ok=True)
    return f"{path.name}: not written: {one_line(error)}"


def _write_tensors(
    name: str, model: nn.Module, specification: ModelSpecification, preprocessing: ImagePreprocessing | None, path: Path
) -> None:
    if name == MERGED:
        save_merged(path, model, specification, preprocessing, combined=False)
    else:
        write_model(path, model, specification, preprocessing)


def _read_tensors(name: str, specification: ModelSpecification, path: Path) -> Forward:
    network = specification.network.name
    trusted = network if is_own_code(network) else None  # this process has just built it
    return load_merged(path, trusted_network=trusted) if name == MERGED else load_model(path, trusted_network=trusted)


def _trace(model: nn.Module, specification: ModelSpecification) -> torch.export.ExportedProgram:
    """Record what a network computes for any number of images.

    The network's code is run on symbolic images. Where it makes the number of images a constant, as `len(images)` must
    since it returns an int, it is read by torch's compiler instead, which keeps that number open.

    Raises:
        ValueError: neither way works.
    """
    # Not one image: the exporters would take a batch of one as fixed
    example = torch.zeros(TRACED_BATCH, *specification.image_shape)
    shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
    with _quiet(), redirect_stderr(io.StringIO()):  # on failure the exporter prints all that it has recorded
        try:
            return torch.export.export(model, (example,), dynamic_shapes=shapes)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the user's code may raise anything
            try:
                return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=True)
            except (OSError, MemoryError):
                raise
            except Exception:
                raise ValueError(_trace_failure(error)) from error


def _trace_failure(error: Exception) -> str:
    """Say why a network could not be recorded, and where its code made the number of images a constant."""
    if FIXED_BATCH not in str(error):
        return one_line(error)
    return (
        f"its code makes the number of images a constant ({TRACED_BATCH} where {TRACED_BATCH} images were tried); "
        "use images.shape[0] as it is, without int(), .item() or a number written out"
    )


def _write_program(
    program: Callable[[], torch.export.ExportedProgram], preprocessing: ImagePreprocessing | None, path: Path
) -> None:
    extra = {} if preprocessing is None else {PREPROCESSING_FILE: preprocessing.model_dump_json()}
    with _quiet():
        for node in program().graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
        torch.export.save(program(), path, extra_files=extra)


def _read_program(path: Path) -> Forward:
    with _quiet():
        loaded: nn.Module = torch.export.load(path).module()
    return loaded


def _write_onnx(
    program: Callable[[], torch.export.ExportedProgram],
    preprocessing: ImagePreprocessing | None,
    opset: int,
    path: Path,
) -> None:
    with _quiet(), redirect_stdout(io.StringIO()):  # the exporter prints its progress
        model = torch.onnx.export(
            _replace_global_max_pools(program()), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
            verbose=False, optimize=False, opset_version=opset,
        )  # fmt: skip
        assert model is not None
        _simplify(model.model)
        if (actual := model.model.opset_imports[""]) != opset:  # the exporter only warns
            raise ValueError(f"its operators cannot be expressed in opset {opset}, but in {actual}")
        model.model.ir_version = IR_VERSIONS[opset]
        model.model.metadata_props.update(_onnx_metadata(preprocessing))
        model.save(path, external_data=False)


def _replace_global_max_pools(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace each adaptive pool to one pixel by a maximum, which the exporters of all versions of torch know.

    That of torch 2.11 knows no adaptive maximum pool.
    """
    operator = torch.ops.aten.adaptive_max_pool2d.default
    if not any(node.target is operator for node in program.graph.nodes):
        return program

    def global_maximum(images: Tensor, output_size: Sequence[int]) -> Any:
        if tuple(output_size) != (1, 1):
            return NotImplemented
        return images.amax((-2, -1), keepdim=True), images.flatten(-2).argmax(-1)[..., None, None]

    with _quiet():
        return program.run_decompositions({operator: global_maximum})


def write_onnx(network: nn.Module, specification: ModelSpecification, path: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write one ONNX file of a network, without its preprocessing.

    Args:
        network: in evaluation mode.
        specification: gives the shape of its images.
        path: the file.
        opset: version of ONNX's operators.

    Raises:
        ValueError: the network cannot be expressed, which may also show as an error of torch's exporter.
        OSError: the file cannot be written.
    """
    _write_onnx(partial(_trace, network, specification), None, opset, path)


def _onnx_metadata(preprocessing: ImagePreprocessing | None) -> dict[str, str]:
    if preprocessing is None:
        return {}
    names = {} if preprocessing.classes is None else {"classes": json.dumps(preprocessing.classes, ensure_ascii=False)}
    return {PREPROCESSING_KEY: preprocessing.model_dump_json(), "input": preprocessing.describe(), **names}


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' deprecation warnings and log lines, which concern their own code."""
    names = ("torch.onnx", "onnxscript", "torch.export", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
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
