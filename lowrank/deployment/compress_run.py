"""What `python -m lowrank.compress` does: read network, weights and images, compress, train shortly, write files."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor, nn

from lowrank.compression import check_classifier, find_trained_weights, list_layers, safetensors_size
from lowrank.data import DataSettings, ImageData, draw_training_images, eval_batches, load_data
from lowrank.deployment.card import CARD_FILE, CardContent, render_card, today
from lowrank.deployment.compressor import Compressed, Compressor
from lowrank.deployment.finetune import finetune
from lowrank.deployment.formats import PREPROCESSING_FILE, Export, ExportedFile, export_formats, split_batches
from lowrank.deployment.given_images import halve_by_class
from lowrank.deployment.latency import Latency, describe_machine, measure_latency
from lowrank.errors import InfeasibleError, InputError
from lowrank.io import (
    ImagePreprocessing,
    ModelSpecification,
    data_preprocessing,
    find_preprocessing,
    load_weights,
    override_preprocessing,
    published_preprocessing,
    read_class_names,
)
from lowrank.layers import Dense
from lowrank.networks import NetworkSettings, default_images, make_network, without_weights
from lowrank.utils import (
    Countdown,
    ExitCode,
    atomic_folder,
    commit,
    format_count,
    format_counted,
    make_output_parents,
    print_result,
    relative_path,
    write_text,
)

Budget = Mapping[str, float]

SEARCH_STEPS = 9
"""Sizes that `--max-loss` tries between 1/64 and all of the parameters."""
_SPLITS = {"val": "validation", "test": "test"}
REPORT_FILE = "report.json"
RUN_FILE = "compress.json"
"""What was asked of the command, when and on what machine, beside the networks that it made."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """The command line, checked.

    Attributes:
        network: the network's name and width.
        weights: the file of its trained weights; None for those that the network is built with.
        data: the images.
        data_dir: where data sets lie; None for the usual place.
        preprocessing: fields of `ImagePreprocessing` that replace what the weights say.
        class_names: a file with the names of the network's classes, in the order of its outputs; None to ask the
            weights.
        budgets: shares of parameters and mult-adds that may remain, one mapping for each network to make.
        max_loss: instead of budgets, the most percentage points of error that may be lost.
        method: see `compress_network`.
        allocation: see `compress_network`.
        calibration: how many training images the factors are fitted to.
        finetune: epochs of training after compression.
        labels_only: train on labels alone, not on the given network's outputs.
        keep: patterns of layers that stay.
        only: patterns of the layers that alone are replaced; None for all.
        report_on: the images whose errors are printed.
        seed: of the choice of calibration images and of the training.
        device: "auto", "cpu" or "cuda".
        out: the folder to write.
        overwrite: whether it may exist.
        opset: of the ONNX files.
        as_json: print one JSON object (a list for several budgets) on standard output and nothing else there.
        command: the command line as one would type it again; "" where it is not known.
    """

    network: NetworkSettings
    weights: Path | None
    data: DataSettings
    data_dir: Path | None
    preprocessing: Mapping[str, Any]
    class_names: Path | None
    budgets: tuple[Budget, ...]
    max_loss: float | None
    method: str
    allocation: str
    calibration: int
    finetune: int
    labels_only: bool
    keep: tuple[str, ...]
    only: tuple[str, ...] | None
    report_on: Literal["val", "test"]
    seed: int
    device: str
    out: Path
    overwrite: bool
    opset: int
    as_json: bool
    command: str = ""

    @property
    def weights_name(self) -> str:
        """What the weights are called in files that name no folder of this machine."""
        return "its own weights" if self.weights is None else self.weights.name


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One compressed network with the errors that are printed (percent; None where there is none)."""

    compressed: Compressed
    network: nn.Module
    error_before: float
    error_after: float
    error_finetuned: float | None
    rates: tuple[float, ...] | None
    seconds: float
    latencies: tuple[Latency, ...] = ()
    files: tuple[ExportedFile, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The fields of `--json`."""
        small = self.compressed
        return {
            "params": small.params, "dense_params": small.dense_params, "mult_adds": small.mult_adds,
            "dense_mult_adds": small.dense_mult_adds, "error_before": self.error_before,
            "error_after": self.error_after, "error_finetuned": self.error_finetuned, "method": small.method,
            "allocation": small.allocation, "seconds": self.seconds, "layers": [asdict(one) for one in small.layers],
        }  # fmt: skip


class _Steps:
    """Prints what is being done on standard error, with the seconds since the start."""

    def __init__(self, stream: TextIO):
        self.stream, self.begin = stream, time.perf_counter()

    def __call__(self, message: str) -> None:
        print(f"{time.perf_counter() - self.begin:6.1f} s  {message}", file=self.stream, flush=True)


_NOBODY_SAYS = "since no file beside the weights says what they expect"
_ASSUMED_NORMALISATION = f"mean and deviation are those of the training images, {_NOBODY_SAYS}"


@dataclass(frozen=True)
class _Images:
    """Normalised images and labels on the device: for the fit, to choose by, and to report on."""

    calibration: tuple[Tensor, Tensor]
    choosing: tuple[Tensor, Tensor]
    reporting: tuple[Tensor, Tensor]


def run_compress(config: CompressConfig) -> int:
    """Compress a trained network and write the result.

    Args:
        config: the checked command line.

    Returns:
        The exit code: 0, or 1 where a form could not be written (it is named on standard error).

    Raises:
        InputError: something that the user gave is wrong; nothing is then written.
    """
    began = time.time()
    steps = _Steps(sys.stderr)
    device = _device(config.device)
    preprocessing = _preprocessing(config)
    fields = preprocessing.data_fields() if preprocessing is not None else {}
    data = load_data(config.data.model_copy(update=fields), config.data_dir)
    for note in data.notes:
        steps(f"note on the data: {note}")
    steps(f"images: {_describe_images(preprocessing, data)}")
    dense = _trained_network(config, data, preprocessing, steps).to(device)
    images = _split_images(config, data, device)
    chance = 100 * (1 - 1 / len(data.classes))
    steps(f"measuring the given network's error on {len(images.reporting[1]):,} images")
    before = error_rate(dense, *images.reporting, progress=steps)
    if before > 0.9 * chance:
        raise InputError(
            f"the network's error on {data.name} is {before:.1f} %, that of chance is {chance:.1f} %: the weights, the "
            "images' normalisation (--mean, --std), their size or the order of classes do not belong together"
        )
    steps(
        f"the given network: {before:.2f} % error on {len(images.reporting[1]):,} {_SPLITS[config.report_on]} images, "
        "which choose nothing"
    )
    compressor = Compressor(
        dense, [images.calibration], keep=config.keep, only=config.only, calibration=config.calibration,
        validation=images.choosing, progress=steps,
    )  # fmt: skip
    if config.max_loss is not None:
        smallest = _smallest_within(compressor, config, steps)
        outcomes = [_outcome(smallest, config, dense, data, images, before, steps)]
    else:
        for budget in config.budgets:
            compressor.check_least_size(dict(budget), config.method)
        for budget in config.budgets:
            compressor.check_budget(dict(budget), config.method)
        outcomes = [
            _outcome(
                compressor.compress(dict(budget), method=config.method, allocation=config.allocation),
                config, dense, data, images, before, steps,
            )
            for budget in config.budgets
        ]  # fmt: skip
    failed = _write(outcomes, config, dense, data, images, preprocessing, steps, began)
    _print(outcomes, config, failed)
    return ExitCode.FAILED if failed else ExitCode.DONE


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that torch can use")
    return torch.device(name)


def _describe_images(preprocessing: ImagePreprocessing | None, data: ImageData) -> str:
    """Say how images become inputs, and whether anybody has said that the weights expect them so."""
    if preprocessing is not None and preprocessing.mean is not None:
        return preprocessing.describe()
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (data.mean, data.std))
    preface = "" if preprocessing is None else f"{preprocessing.describe()}; "
    return (
        f"{preface}normalised by the mean ({mean}) and deviation ({std}) of the training images, {_NOBODY_SAYS}; "
        "--mean and --std set others"
    )


def _preprocessing(config: CompressConfig) -> ImagePreprocessing | None:
    """What the weights expect of an image, as the file beside them or the command line says; None if nobody says."""
    values = dict(config.preprocessing)
    if config.class_names is not None:
        values["classes"] = read_class_names(config.class_names)
    published = (
        published_preprocessing(config.network) if config.weights is None else find_preprocessing(config.weights)
    )
    return override_preprocessing(published, values, "the command line")


def _trained_network(
    config: CompressConfig, data: ImageData, preprocessing: ImagePreprocessing | None, steps: _Steps
) -> nn.Module:
    settings, classes = without_weights(config.network), len(data.classes)
    if config.weights is None:
        settings = config.network
        _check_own_weights(settings, data)
    network = make_network(settings, data.image_shape, classes)
    check_classifier(network, torch.zeros(1, *data.image_shape), classes)
    if config.weights is None:
        steps(f"weights: those that {settings.name} is built with")
    else:
        for line in load_weights(network, config.weights).lines():
            steps(line)
    positions = None if preprocessing is None else preprocessing.class_positions(data.classes)
    if positions is not None and positions != tuple(range(len(data.classes))):
        reorder_outputs(network, positions, torch.zeros(1, *data.image_shape))
        steps("the network's outputs are put into the order of the images' classes")
    return network.eval()


def _check_own_weights(network: NetworkSettings, data: ImageData) -> None:
    """Check that a network is built with trained weights, its last layer included."""
    classes = len(data.classes)
    if network.weights is None:
        if not find_trained_weights(network, data.image_shape, classes):
            raise InputError(
                f"--weights network needs a network that is built with trained weights, but {network.name} draws its "
                "weights by the seed; give a file"
            )
    elif (published := default_images(network.name)[1]) != classes:
        raise InputError(
            f"the weights {network.weights} of {network.name} are for {published:,} classes, but {data.name} has "
            f"{classes:,}: train it on these first (sweeps/teacher.py), and give that file by --weights"
        )


@torch.no_grad()
def reorder_outputs(network: nn.Module, positions: Sequence[int], image: Tensor) -> None:
    """Put the outputs of a network, in place, into another order.

    Args:
        network: its last layer must give one output for each position.
        positions: the present place of each output, in the new order.
        image: one image (1, C, H, W), to find the last layer.

    Raises:
        InputError: the last layer has another number of outputs.
    """
    name = list_layers(network, image).last
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if len(layer.weight) != len(positions):
        raise InputError(f"`{name}` must have {len(positions)} outputs, one a class, but has {len(layer.weight)}")
    order = torch.tensor(positions)
    for value in (layer.weight, layer.bias):
        if value is not None:
            value.copy_(value[order])


def _split_images(config: CompressConfig, data: ImageData, device: torch.device) -> _Images:
    """Calibration from the training split; half of validation chooses, the other half or test reports."""
    calibration = draw_training_images(data, config.calibration, config.seed, device)
    images, labels = _images(data, "val", device)
    halves = [(images[half], labels[half]) for half in halve_by_class(labels)]
    reporting = _images(data, "test", device) if config.report_on == "test" else halves[1]
    return _Images(calibration, halves[0], reporting)


def _images(data: ImageData, split: Literal["train", "val", "test"], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised images and labels of a split, on the device."""
    batches = list(eval_batches(data, split, device=device, batch_size=512))
    return torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])


@torch.no_grad()
def error_rate(
    network: nn.Module, images: Tensor, labels: Tensor, progress: Callable[[str], None] = lambda line: None
) -> float:
    """Measure the error of a network in percent.

    Args:
        network: put into evaluation mode.
        images: (B, C, H, W), normalised.
        labels: (B).
        progress: called with a line on how far it is, every few seconds, where standard error is a terminal.

    Returns:
        The share of images that get another class than their label, times 100.
    """
    network.eval()
    batches = images.split(256)
    countdown = Countdown(progress, "evaluating, batch", len(batches), announced=True)
    classes = []
    for part in batches:
        countdown.step("")
        classes.append(network(part).argmax(1))
    return 100 * float((torch.cat(classes) != labels).double().mean())


def _smallest_within(compressor: Compressor, config: CompressConfig, steps: _Steps) -> Compressed:
    """The smallest network whose error on the choosing images is at most `max_loss` points above the dense one's."""
    assert config.max_loss is not None
    low, high, best = 1 / 64, 1.0, None
    for _ in range(SEARCH_STEPS):
        share = (low * high) ** 0.5
        try:
            small = compressor.compress(share, method=config.method, allocation=config.allocation)
        except InfeasibleError:
            low = share
            continue
        assert small.error_after is not None
        assert small.error_before is not None
        lost = small.error_after - small.error_before
        steps(f"{share:.1%} of the parameters: {lost:+.2f} points")
        if lost <= config.max_loss:
            high, best = share, small
        else:
            low = share
    if best is None:
        raise InfeasibleError(f"no smaller network loses at most {config.max_loss:g} points")
    return best


def _outcome(
    small: Compressed, config: CompressConfig, dense: nn.Module, data: ImageData, images: _Images, before: float,
    steps: _Steps,
) -> Outcome:  # fmt: skip
    begin = time.perf_counter()
    after = error_rate(small.network, *images.reporting, progress=steps)
    steps(f"{small.params:,} parameters by {small.method}: {after:.2f} % error before any training")
    network, finetuned, rates = small.network, None, None
    if config.finetune:
        trained = finetune(
            small.network, dense, data, network_name=config.network.name, epochs=config.finetune,
            choosing=images.choosing, seed=config.seed, device=next(dense.parameters()).device,
            labels_only=config.labels_only, progress=steps,
        )  # fmt: skip
        network, rates = trained.network, trained.rates
        finetuned = error_rate(network, *images.reporting, progress=steps)
        steps(f"{finetuned:.2f} % error after {_epochs(config)}")
    seconds = small.seconds + time.perf_counter() - begin
    return Outcome(
        compressed=small, network=network, error_before=before, error_after=after, error_finetuned=finetuned,
        rates=rates, seconds=seconds,
    )  # fmt: skip


def _write(
    outcomes: list[Outcome], config: CompressConfig, dense: nn.Module, data: ImageData, images: _Images,
    preprocessing: ImagePreprocessing | None, steps: _Steps, began: float,
) -> list[str]:  # fmt: skip
    """Write one folder, or one for each budget inside it; returns the forms that could not be written."""
    failed: list[str] = []
    expected = data_preprocessing(data)
    if preprocessing is not None:
        expected = expected.model_copy(update={"source": preprocessing.source})
    if preprocessing is None or preprocessing.mean is None:
        expected = expected.model_copy(update={"source": f"{expected.source}; {_ASSUMED_NORMALISATION}"})
    names = folder_names(outcomes)
    make_output_parents(config.out)
    with atomic_folder(config.out, replace=config.overwrite) as folder:
        for index, outcome in enumerate(outcomes):
            if len(outcomes) > 1:
                steps(f"files of the network with {outcome.compressed.params:,} parameters:")
            target = folder / names[index]
            target.mkdir(exist_ok=True)
            outcomes[index] = _write_one(outcome, target, config, dense, data, images, expected, steps, failed)
        record = _run_record(outcomes, config, data, images, failed, began)
        write_text(folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
    return failed


def _run_record(
    outcomes: Sequence[Outcome], config: CompressConfig, data: ImageData, images: _Images, failed: Sequence[str],
    began: float,
) -> dict[str, object]:  # fmt: skip
    """What a log needs to know of this run; times are in seconds since the epoch, errors in percent."""
    networks = []
    for name, outcome in zip(folder_names(outcomes), outcomes, strict=True):
        fields = {key: value for key, value in outcome.as_dict().items() if key != "layers"}
        networks.append({"folder": name, **fields})
    return {
        "version": 1, "began": began, "ended": time.time(), "command": config.command, "commit": commit(),
        "machine": describe_machine(), "device": str(images.calibration[0].device),
        "network": config.network.model_dump(mode="json"), "weights": config.weights_name,
        "data": {"name": data.name, "fingerprint": data.fingerprint}, "report_on": config.report_on,
        "images": len(images.reporting[1]), "seed": config.seed, "finetune": config.finetune, "failed": list(failed),
        "networks": networks,
    }  # fmt: skip


def folder_names(outcomes: Sequence[Outcome]) -> list[str]:
    """Name the folder of each network by its parameters.

    Args:
        outcomes: the networks of one run.

    Returns:
        Names that differ, in the order given; "" for a single network, whose folder is that of the run.
    """
    if len(outcomes) == 1:
        return [""]
    params = [outcome.compressed.params for outcome in outcomes]
    names = [f"{format_count(count)}_parameters" for count in params]
    if len(set(names)) < len(names):  # sizes that agree in three digits
        names = [f"{count}_parameters" for count in params]
    if len(set(names)) < len(names):
        names = [f"{place}_{name}" for place, name in enumerate(names, start=1)]
    return names


def _write_one(
    outcome: Outcome, folder: Path, config: CompressConfig, dense: nn.Module, data: ImageData, images: _Images,
    expected: ImagePreprocessing, steps: _Steps, failed: list[str],
) -> Outcome:  # fmt: skip
    network = copy.deepcopy(outcome.network).eval()
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # files hold plain tensors
    specification = make_specification(outcome.compressed, config.network, data)
    pixels, labels = (values.cpu() for values in images.reporting)
    export = export_formats(
        network, specification, split_batches(pixels, labels), folder, steps, preprocessing=expected, opset=config.opset
    )  # fmt: skip
    failed += export.problems
    latencies = measure_latency({"given": dense.cpu().eval(), "compressed": network}, data.image_shape, step=steps)
    done = replace(outcome, network=network, latencies=tuple(latencies), files=export.files)
    sizes = {"given": _file_bytes(dense), "compressed": _file_bytes(network)}
    write_text(folder / REPORT_FILE, json.dumps(done.as_dict(), indent=1) + "\n")
    write_text(folder / PREPROCESSING_FILE, expected.model_dump_json(indent=1) + "\n")
    write_text(folder / CARD_FILE, render_card(_card(done, config, data, specification, expected, export, sizes)))
    return done


def _file_bytes(network: nn.Module) -> int:
    """The size of a network's weights as a safetensors file without metadata."""
    return safetensors_size({name: (value.dtype, tuple(value.shape)) for name, value in network.state_dict().items()})


def _card(
    outcome: Outcome, config: CompressConfig, data: ImageData, specification: ModelSpecification,
    preprocessing: ImagePreprocessing, export: Export, sizes: dict[str, int],
) -> CardContent:  # fmt: skip
    """What the card says: the files' own error, then the tables that are printed too."""
    small, part = outcome.compressed, _SPLITS[config.report_on]
    images = f"{export.images:,} {part} images of {data.name}"
    title, *table = summary_lines(outcome, config)
    return CardContent(
        title=title.removeprefix("# "), quality=[
            f"Error of these files: {export.error:.2f} % on {images}, which chose nothing; the given network has "
            f"{outcome.error_before:.2f} %."
        ],
        introduction=[
            f"{config.network.name} with {small.params:,} of {small.dense_params:,} parameters, made from "
            f"{config.weights_name} by python -m lowrank.compress."
        ],
        images=f"the {images}", specification=specification, preprocessing=preprocessing, export=export,
        latencies=outcome.latencies, sizes=sizes, machine=describe_machine(outcome.latencies), date=today(),
        mult_adds={"given": small.dense_mult_adds, "compressed": small.mult_adds},
        sections={"Before and after": escape("\n".join(table).strip(), quote=False)},
    )  # fmt: skip


def make_specification(small: Compressed, network: NetworkSettings, data: ImageData) -> ModelSpecification:
    """Describe a compressed network so that its file can be loaded again.

    Args:
        small: the compressed network.
        network: name and width of the network that it came from.
        data: for the images' shape and the number of classes.

    Returns:
        The specification, with the factors of each layer by name.
    """
    layers = {
        layer.name: {"method": layer.method, "ranks": list(layer.ranks), "bias": True}
        for layer in small.layers if layer.method != "dense"
    }  # fmt: skip
    return ModelSpecification(
        network=without_weights(network), method=Dense(), image_shape=data.image_shape,
        classes=len(data.classes), layers=layers, projected_attention=small.projected_attention > 0,
    )  # fmt: skip


def _print(outcomes: Sequence[Outcome], config: CompressConfig, failed: Sequence[str]) -> None:
    folders = [config.out / name for name in folder_names(outcomes)]
    if config.as_json:
        reports = [
            {"folder": str(folder), **outcome.as_dict()} for folder, outcome in zip(folders, outcomes, strict=True)
        ]
        print_result(json.dumps(reports if len(config.budgets) > 1 else reports[0]))
    else:
        for outcome in outcomes:
            print("\n".join([*summary_lines(outcome, config), ""]))
        print(f"written to {', '.join(map(relative_path, folders))}")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)


def _epochs(config: CompressConfig) -> str:
    return format_counted(config.finetune, "epoch")


def _rates(rates: tuple[float, ...] | None) -> str:
    if not rates:
        return "no rate helped"
    return f"rate{'s' * (len(rates) > 1)} {', '.join(f'{rate:g}' for rate in rates)}"


def summary_lines(outcome: Outcome, config: CompressConfig) -> list[str]:
    """The printed table of one network, in Markdown.

    Args:
        outcome: the network with its errors.
        config: the command line.

    Returns:
        The lines: sizes and errors, time for an answer, and each layer.
    """
    small = outcome.compressed
    rise = outcome.error_after - outcome.error_before
    rows = [
        ("", "given", "compressed", "share"),
        ("parameters", f"{small.dense_params:,}", f"{small.params:,}", f"{small.params / small.dense_params:.1%}"),
        ("mult-adds", f"{small.dense_mult_adds:,}", f"{small.mult_adds:,}",
         f"{small.mult_adds / small.dense_mult_adds:.1%}"),
        (f"{_SPLITS[config.report_on]} error, %", f"{outcome.error_before:.2f}", f"{outcome.error_after:.2f}",
         f"{rise:+.2f} points"),
    ]  # fmt: skip
    if config.max_loss is not None and small.error_before is not None and small.error_after is not None:
        loss = small.error_after - small.error_before  # on the images that the limit holds for
        rows.append(
            ("on the images that chose, %", f"{small.error_before:.2f}", f"{small.error_after:.2f}",
             f"{loss:+.2f} points, at most {config.max_loss:g}")
        )  # fmt: skip
    if outcome.error_finetuned is not None:
        label = f"after {_epochs(config)}, %"
        rows.append((label, "", f"{outcome.error_finetuned:.2f}", _rates(outcome.rates)))
    for batch in dict.fromkeys(one.batch for one in outcome.latencies):
        times = {one.name: one.median_ms for one in outcome.latencies if one.batch == batch}
        share = f"{times['compressed'] / times['given']:.1%}"
        rows.append(
            (f"ms for {format_counted(batch, 'image')}", f"{times['given']:.2f}", f"{times['compressed']:.2f}", share)
        )
    lines = [f"# {config.network.name}, factors {small.method}, ranks by {small.allocation}", "", *_markdown(rows), ""]
    if outcome.latencies:
        lines += [f"Times: float32; {describe_machine(outcome.latencies)}.", ""]
    if config.max_loss is not None and rise > config.max_loss:
        lines += [
            f"The limit of {config.max_loss:g} points is met on the images that choose, but on those that choose "
            f"nothing the error rises by {rise:.2f} points before any training.",
            "",
        ]
    layers = [
        ("layer", "kind", "factors", "ranks", "parameters", "parameters before", "weight error", "output error", "")
    ]
    layers += [
        (layer.name, layer.kind, layer.method, " ".join(map(str, layer.ranks)), f"{layer.params:,}",
         f"{layer.dense_params:,}", _percent(layer.weight_error), _percent(layer.output_error), layer.reason)
        for layer in small.layers
    ]  # fmt: skip
    return [*lines, *_markdown(layers)]


def _percent(share: float | None) -> str:
    """A relative error as text; empty where the layer was not touched."""
    return "" if share is None else f"{share:.1%}"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned in plain text too; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
