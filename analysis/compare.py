"""`python -m analysis compare STUDY STUDY ...`: fronts, hypervolume at equal cost, and the trials that differ.

`--group NAME` compares all studies of a group.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from analysis.cli import add_stores, group_members, load_from, open_page, output_folder, run_script
from analysis.findings import compare_studies
from analysis.reporting import write_comparison
from analysis.stats import COST_UNITS, check_equal, differing_fields, parse_reference
from analysis.utils import steps
from lowrank.errors import InputError
from lowrank.utils import relative_path
from sweeps.records import StudyRecord

FOLDER = "comparisons"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `compare`.

    Args:
        parser: receives them.
    """
    parser.add_argument("names", nargs="*", metavar="STUDY", help="two studies or more: names or folders")
    parser.add_argument("--group", metavar="NAME", help="all studies of this group, and those that are named")
    add_stores(parser)
    parser.add_argument(
        "--cost", choices=COST_UNITS, help="what is made equal (default: seconds; epochs on unlike machines)"
    )
    parser.add_argument("--reference", metavar="PARAMS,ERROR", help="default: the separable size and guessing")
    parser.add_argument("--mixed", action="store_true", help="compare studies of other networks, epochs or recipes")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: studies/{FOLDER}/A_B")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the comparison and print its answer.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: fewer than two studies, a study or group that is unknown, studies of other networks, epochs or
            recipes without `--mixed`, no common reference point, or an output folder that cannot be written.
    """
    store = arguments.studies, arguments.tracking_uri
    names = list(
        dict.fromkeys([*arguments.names, *(group_members(arguments.group, *store) if arguments.group else ())])
    )
    if len(names) < 2:
        of_group = f" ({', '.join(names) or 'none'} with the group {arguments.group!r})" if arguments.group else ""
        raise InputError(f"a comparison needs two studies or more, but got {len(names)}{of_group}")
    reference = parse_reference(arguments.reference) if arguments.reference else None
    with steps("compare", len(names) + 1) as step:
        studies = []
        for name in names:
            step(name)
            studies.append(load_from(name, *store, step.detail))
        step("page")
        _tell_apart(studies, names)
        check_equal(differing_fields(studies), allowed=arguments.mixed)
        comparison = compare_studies(studies, arguments.cost, reference)
        default = arguments.studies / FOLDER / (arguments.group or "_".join(comparison.fronts.names).replace("/", "-"))
        page = write_comparison(comparison, output_folder(arguments.out or default))
    files = f"{relative_path(page)}: fronts, hypervolume and trials, pictures and tables beside it"
    print("\n".join([*comparison.sentences(), "", files]))
    if arguments.open:
        open_page(page)
    return 0


def _tell_apart(studies: Sequence[StudyRecord], names: Sequence[str]) -> None:
    """Where two studies have one name, call each as the user did: by its folder."""
    if len({study.name for study in studies}) < len(studies):
        for study, name in zip(studies, names, strict=True):
            study.header = study.header.named(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    return run_script("compare", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
