"""`python analysis/export.py --study S --pick best --max-params 7e5`: the chosen model in forms that others can use.

Writes the trained network factorised and merged, each as safetensors, `torch.export` program and ONNX; `proof.json`,
which holds what was measured on the files themselves; and a model card. Exit code 1: a file does not give the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.cli.arguments import output_folder, run_script
from analysis.utils.progress import steps
from lowrank.errors import InputError
from sweeps.records.load import STUDIES, find_study, load_study

if TYPE_CHECKING:
    from torch import nn

    from analysis.model_export.model_card import Proof
    from analysis.model_export.select_trial import Limits
    from analysis.stats.front import FrontPoint
    from lowrank.data import ImageData
    from lowrank.deployment.formats import ComparisonImages
    from lowrank.deployment.latency import Latency
    from lowrank.io.model_file import ModelSpecification
    from sweeps.records.model import StudyRecord

CARD_FILE, PROOF_FILE, FOLDER = "README.md", "proof.json", "export"
RANDOM_IMAGES = 256
STEPS = 9  # six files, two batch sizes, the card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--study", required=True, metavar="NAME", help="a study's name, or its folder")
    parser.add_argument("--studies", type=Path, default=STUDIES, metavar="DIR", help="where studies are (studies/)")
    parser.add_argument(
        "--pick", choices=("best", "smallest"), default="best", help="within the limits (default: best)"
    )
    parser.add_argument("--max-params", type=float, metavar="N", help="at most so many parameters, e.g. 7e5")
    parser.add_argument("--max-error", type=float, metavar="PERCENT", help="at most this validation error")
    parser.add_argument("--trial", metavar="ID", help="this trial instead, or the beginning of its id")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data set lies, to prove on its images")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads for the latencies (default: torch's own)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: STUDY/export/TRIAL")


def run(arguments: argparse.Namespace) -> int:
    """Export, prove, and say what was found; raises InputError."""
    from analysis.model_export.select_trial import by_id, choose, specification_of, trained_network, trial_data

    folder = find_study(arguments.study, arguments.studies)
    study = load_study(folder)
    limits = _limits(arguments)
    point = by_id(study, arguments.trial) if arguments.trial else choose(study, arguments.pick, limits)
    trial = study.trials[point.trial_id]
    data = trial_data(trial, arguments.data_dir)
    specification = specification_of(study, trial, data)
    network = trained_network(folder, point.trial_id, specification)
    out = output_folder(arguments.out or folder / FOLDER / point.trial_id)
    proof = export(study, point, specification, network, data, out, arguments.threads)
    print("\n".join(_lines(point, proof, out)))
    return 0 if proof.equal else 1


def _limits(arguments: argparse.Namespace) -> Limits:
    from analysis.model_export.select_trial import Limits

    for name in ("max_params", "max_error", "threads"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, but got {value:g}")
    if arguments.trial and (arguments.max_params or arguments.max_error):
        raise InputError("--trial names one trial; leave --max-params and --max-error out")
    return Limits(params=arguments.max_params, error=arguments.max_error)


def export(
    study: StudyRecord, point: FrontPoint, specification: ModelSpecification, network: nn.Module,
    data: ImageData | None, folder: Path, threads: int | None = None,
) -> Proof:  # fmt: skip
    """Write everything into `folder` and return what was proved."""
    import torch

    from analysis.model_export.model_card import Proof, model_card, today
    from lowrank.deployment.formats import export_formats
    from lowrank.deployment.latency import describe_machine

    if threads:
        torch.set_num_threads(threads)
    images, probe = _probe(specification, data)
    with steps("export", STEPS) as step:
        forms = export_formats(network, specification, probe, folder, step)
        latencies = _latencies(network, specification, folder, step)
        step("card")
        sizes, work = _beside(specification)
        for form in forms:
            name = f"{form.network}, ONNX Runtime" if form.kind == "ONNX" else form.network
            if form.kind != "torch.export":
                sizes[name], work[name] = form.bytes, form.mult_adds
        proof = Proof(
            study=study.name, trial_id=point.trial_id, setting=point.name, params=point.params, images=images,
            forms=tuple(forms), sizes=sizes, mult_adds=work, latencies=tuple(latencies), machine=describe_machine(),
            date=today(),
        )  # fmt: skip
        (folder / PROOF_FILE).write_text(json.dumps({**asdict(proof), "equal": proof.equal}, indent=1) + "\n")
        (folder / CARD_FILE).write_text(model_card(study, point, specification, proof, _preparation(data)))
    return proof


def _preparation(data: ImageData | None) -> dict[str, Any]:
    if data is None:
        return {}
    mean, std = ([round(value, 6) for value in values] for values in (data.mean, data.std))
    return {"mean": mean, "std": std, "classes": list(data.classes)}


def _probe(specification: ModelSpecification, data: ImageData | None) -> tuple[str, ComparisonImages]:
    """The validation split where it is at hand, else random images of its shape; in words, and as tensors."""
    import torch

    from lowrank.data import eval_batches
    from lowrank.deployment.formats import ComparisonImages

    if data is None:
        images = torch.randn(RANDOM_IMAGES, *specification.image_shape, generator=torch.Generator().manual_seed(0))
        return f"{RANDOM_IMAGES} random images (the data set was not at hand)", ComparisonImages(
            images=images, labels=None
        )
    parts = [(images, labels) for images, labels, *_ in eval_batches(data, "val", "cpu", 256)]
    images = torch.cat([images for images, _ in parts]).contiguous()
    return f"the {len(images):,} validation images", ComparisonImages(
        images=images, labels=torch.cat([labels for _, labels in parts])
    )


def _plain_forms(specification: ModelSpecification) -> dict[str, nn.Module]:
    """The dense and the separable network of the same width, untrained, ready to run."""
    from lowrank.deployment.formats import merged_network
    from lowrank.layers import Dense, Separable

    forms = {"dense": Dense(), "separable": Separable()}
    return {
        name: merged_network(specification.model_copy(update={"method": method, "allocation": None}).build())
        for name, method in forms.items()
    }


def _latencies(network: nn.Module, specification: ModelSpecification, folder: Path, step: Any) -> list[Latency]:
    from lowrank.deployment.formats import FACTORISED, MERGED, merged_network, onnx_forward
    from lowrank.deployment.latency import measure_latency

    contestants: dict[str, Any] = {FACTORISED: network, MERGED: merged_network(network), **_plain_forms(specification)}
    contestants |= {f"{name}, ONNX Runtime": onnx_forward(folder / f"{name}.onnx") for name in (FACTORISED, MERGED)}
    return measure_latency(contestants, specification.image_shape, step=step)


def _beside(specification: ModelSpecification) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes as safetensors and mult-adds of the dense and the separable network."""
    from lowrank.compression.file_size import measure_file_size
    from lowrank.compression.trace import network_plan, network_to_count
    from lowrank.layers import Dense, Separable

    shape, classes = specification.image_shape, specification.classes
    plan = network_plan(specification.network, shape, classes)
    sizes: dict[str, int] = {}
    work: dict[str, int] = {}
    for method in (Dense(), Separable()):
        sizes[method.name] = measure_file_size(
            network_to_count(specification.network, shape, classes), plan, method
        ).bytes
        work[method.name] = plan.mult_adds(method)
    return sizes, work


def _lines(point: FrontPoint, proof: Proof, folder: Path) -> list[str]:
    """What the command prints."""
    lines = [f"trial {point.trial_id}: {point.name}, {point.params:,} parameters, {point.error:.2f} % validation error"]
    lines.append(f"compared on {proof.images}; largest logit {max(form.largest for form in proof.forms):.3g}")
    for form in proof.forms:
        error = "" if form.error is None else f", {form.error:.2f} % error"
        verdict = "same" if form.equal else "NOT THE SAME"
        lines.append(f"  {form.file:24} {form.bytes:>11,} bytes, difference {form.difference:.1e}{error}: {verdict}")
    lines.append(f"latency, medians in ms ({proof.machine})")
    for name in dict.fromkeys(latency.name for latency in proof.latencies):
        own = [latency for latency in proof.latencies if latency.name == name]
        times = ", ".join(f"batch {latency.batch}: {latency.median_ms:.2f}" for latency in own)
        lines.append(f"  {name:24} {times}")
    lines.append(f"written into {folder}; start with {CARD_FILE}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code: 0, 1 when a file gives other outputs than the network, or 2 for bad input.
    """
    return run_script("export", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
