"""`python -m analysis export --study S --pick best --max-params 7e5`: the chosen model in forms that others can use.

Writes the trained network factorised and merged, each as safetensors, `torch.export` program and ONNX; `proof.json`,
which holds what was measured on the files themselves; and a model card. A trial of the front is taken from the study's
`models/`. Exit code 1: a file could not be written or computes other outputs than the trained network, or the network
has another error than the study recorded; it is named, and the rest is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from analysis.cli import run_script
from analysis.utils import steps
from lowrank.errors import InputError
from lowrank.utils import ExitCode
from sweeps.records import STUDIES_FOLDER, find_study, load_study

if TYPE_CHECKING:
    from analysis.model_export import Limits

FOLDER = "export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `export`.

    Args:
        parser: receives them.
    """
    parser.add_argument("--study", required=True, metavar="NAME", help="a study's name, or its folder")
    parser.add_argument(
        "--studies", type=Path, default=STUDIES_FOLDER, metavar="DIR", help="where studies are (studies/)"
    )
    parser.add_argument(
        "--pick", choices=("best", "smallest"), default="best", help="within the limits (default: best)"
    )
    parser.add_argument("--max-params", type=float, metavar="N", help="at most so many parameters, e.g. 7e5")
    parser.add_argument("--max-error", type=float, metavar="PERCENT", help="at most this validation error")
    parser.add_argument("--trial", metavar="ID", help="this trial instead, or the beginning of its id")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data set lies, to prove on its images")
    parser.add_argument("--class-names", type=Path, metavar="FILE", help="names of the classes, in the outputs' order")
    parser.add_argument("--opset", type=int, metavar="N", help="of the ONNX files, 17 to 23 (default: 18)")
    parser.add_argument("--allow-code", action="store_true", help="let the study run code: package.module:function")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads for the latencies (default: torch's own)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: STUDY/export/TRIAL")


def run(arguments: argparse.Namespace) -> int:
    """Choose a trial, export it, and print what was measured.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code: 0, or 1 when something is not as it should be, which is printed.

    Raises:
        InputError: there is no such study, trial or opset, none within the limits, its weights are missing, its
            network is code that is not allowed, or the output folder cannot be written.
    """
    # These load torch, which --help does without.
    import torch

    from analysis.model_export import (
        STEPS,
        choose_trial,
        export_trial,
        find_completed,
        find_trial_data,
        load_trained,
        proof_lines,
    )
    from lowrank.deployment import check_opset
    from lowrank.io import override_preprocessing, read_class_names

    folder = find_study(arguments.study, arguments.studies)
    study = load_study(folder)
    limits = _limits(arguments)
    opset = check_opset(arguments.opset)
    classes = read_class_names(arguments.class_names) if arguments.class_names else None
    point = find_completed(study, arguments.trial) if arguments.trial else choose_trial(study, arguments.pick, limits)
    trial = study.trials[point.trial_id]
    data, why_not = find_trial_data(trial, arguments.data_dir)
    if why_not:
        print(f"the files are compared on random images, not on the trial's: {why_not}")
    trained = load_trained(folder, study, trial, data, allow_code=arguments.allow_code)
    if classes is not None:
        if len(classes) != trained.specification.classes:
            raise InputError(
                f"--class-names must have {trained.specification.classes} names, one for each output, but "
                f"{arguments.class_names} has {len(classes)}"
            )
        preprocessing = override_preprocessing(trained.preprocessing, {"classes": classes}, str(arguments.class_names))
        trained = replace(trained, preprocessing=preprocessing)
    out = arguments.out or folder / FOLDER / point.trial_id
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with steps("export", STEPS) as step:
        proof = export_trial(study, point, trained, data, out, step, opset=opset)
    print("\n".join(proof_lines(point, proof, out)))
    return ExitCode.FAILED if proof.problems else ExitCode.DONE


def _limits(arguments: argparse.Namespace) -> Limits:
    from analysis.model_export import Limits

    for name in ("max_params", "max_error", "threads"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, but got {value:g}")
    if arguments.trial and (arguments.max_params or arguments.max_error):
        raise InputError("--trial names one trial; leave --max-params and --max-error out")
    return Limits(params=arguments.max_params, error=arguments.max_error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code: 0, 1 when something is not as it should be, or 2 for bad input.
    """
    return run_script("export", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
