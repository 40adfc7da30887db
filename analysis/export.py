"""`python analysis/export.py --study S --pick best --max-params 7e5`: the chosen model in forms that others can use.

Writes the trained network factorised and merged, each as safetensors, `torch.export` program and ONNX; `proof.json`,
which holds what was measured on the files themselves; and a model card. Exit code 1: a file computes other outputs
than the trained network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli import output_folder, run_script
from analysis.utils import steps
from lowrank.errors import InputError
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
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads for the latencies (default: torch's own)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: STUDY/export/TRIAL")


def run(arguments: argparse.Namespace) -> int:
    """Choose a trial, export it, and print what was measured.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code: 0, or 1 when a file computes other outputs than the trained network.

    Raises:
        InputError: there is no such study or trial, none within the limits, its weights are missing, or the output
            folder cannot be written.
    """
    # These load torch, which --help does without.
    import torch

    from analysis.model_export import (
        STEPS,
        choose_trial,
        export_trial,
        find_completed,
        find_trial_data,
        load_network,
        model_specification,
        proof_lines,
    )

    folder = find_study(arguments.study, arguments.studies)
    study = load_study(folder)
    limits = _limits(arguments)
    point = find_completed(study, arguments.trial) if arguments.trial else choose_trial(study, arguments.pick, limits)
    trial = study.trials[point.trial_id]
    data = find_trial_data(trial, arguments.data_dir)
    specification = model_specification(study, trial, data)
    network = load_network(folder, point.trial_id, specification)
    out = output_folder(arguments.out or folder / FOLDER / point.trial_id)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with steps("export", STEPS) as step:
        proof = export_trial(study, point, specification, network, data, out, step)
    print("\n".join(proof_lines(point, proof, out)))
    return 0 if proof.equal else 1


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
        The exit code: 0, 1 when a file computes other outputs than the trained network, or 2 for bad input.
    """
    return run_script("export", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
