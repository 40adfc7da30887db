"""`python -m analysis check STUDY`: read every file of a study and say what is damaged, and change nothing."""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from lowrank.utils import ExitCode
from sweeps.records import find_study

add_arguments = add_study


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each damage of a study.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code: 0 where all is whole, 1 where something is damaged.

    Raises:
        InputError: there is no such study, or a newer version of this project wrote it.
    """
    from analysis.sources import check_study, repair_command

    folder = find_study(arguments.study, arguments.studies)
    problems = check_study(folder)
    if not problems:
        print(f"{folder}: every file is whole")
        return ExitCode.DONE
    print("\n".join(problems))
    print(f"{repair_command(folder)} keeps all that is whole")
    return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(refuse_script("check"))
