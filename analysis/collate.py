"""`python -m analysis collate STUDY STUDY ... --name all`: the records of several machines or stores as one study.

Of a trial that several studies have, the copy that trained longest is used; its counts are checked against its
specification, and what cannot be checked is printed. The result is a study's folder (journal, tables, weights, models)
that every other command reads. Exit code 1: a trial was left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from analysis.cli import run_script
from analysis.sources import StudySource, check_new_study, collate, summary_lines, write_study
from analysis.stats import check_equal, differing_fields, mixed_fields, mixed_text
from analysis.utils import steps
from lowrank.errors import InputError
from sweeps.records import STUDIES_FOLDER, find_study, load_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `collate`.

    Args:
        parser: receives them.
    """
    parser.add_argument("names", nargs="*", metavar="STUDY", help="studies by name, or their folders")
    parser.add_argument(
        "--from-store", action="append", default=[], nargs=2, metavar=("URI", "NAME"),
        help="a study of an MLflow store; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--mixed", action="store_true", help="join studies of other networks, epochs, recipes or starts"
    )
    parser.add_argument("--name", required=True, help="name of the new study")
    parser.add_argument(
        "--allow-code", action="store_true", help="let the studies run code, package.module:function, to count it"
    )
    parser.add_argument(
        "--studies", type=Path, default=STUDIES_FOLDER, metavar="DIR", help="where studies are (studies/)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Join the studies into a new one and print where each of its trials comes from.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code: 0, or 1 when a trial was left out because its counts are wrong.

    Raises:
        InputError: fewer than two studies, one named twice, one unknown, a name that is taken or not plain, or studies
            of different data, or of other networks, epochs, recipes or starts without `--mixed`; nothing has been
            written.
    """
    folder = check_new_study(arguments.name, arguments.studies)
    total = len(arguments.names) + len(arguments.from_store)
    if total < 2:
        raise InputError(f"collating needs two studies or more, but got {total}")
    with steps("collate", total + 2) as step:
        sources = list(_sources(arguments, step))
        if len({source.label for source in sources}) < total:
            raise InputError("each study must be named once; two of one name are told apart by their folders")
        mixed = differing_fields([source.study for source in sources])
        check_equal(mixed, allowed=arguments.mixed)
        step("counts")
        collated = collate(
            sources, arguments.name, {entry.field: entry.values for entry in mixed}, allow_code=arguments.allow_code
        )
        step("writing")
        arguments.studies.mkdir(parents=True, exist_ok=True)
        write_study(collated, folder)
    mark = mixed_text(mixed_fields(collated.study))
    print("\n".join([*summary_lines(collated, sources, folder), *[mark] * bool(mark)]))
    return 1 if collated.rejected else 0


def _sources(arguments: argparse.Namespace, step: Callable[[str], None]) -> Iterator[StudySource]:
    """The studies that the arguments name; `step` is called with the name of each."""
    for name in arguments.names:
        step(name)
        folder = find_study(name, arguments.studies)
        yield StudySource(label=str(folder), study=load_study(folder), folder=folder)
    for uri, name in arguments.from_store:
        from analysis.sources import load_from_mlflow
        from lowrank.utils import redact

        step(name)
        yield StudySource(label=f"{name} in {redact(uri)}", study=load_from_mlflow(uri, name), folder=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; None for those of the process.

    Returns:
        The exit code: 0, 1 when a trial was left out, or 2 for bad input.
    """
    return run_script("collate", __doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
