"""`python -m analysis repair STUDY`: keep the intact records of a damaged study, and say what is left out."""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from lowrank.utils import ExitCode
from sweeps.records import find_study

add_arguments = add_study


def run(arguments: argparse.Namespace) -> int:
    """Repair a study and print what was done.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study, it cannot be repaired, or a driver runs it.
    """
    from analysis.sources import repair_study

    folder = find_study(arguments.study, arguments.studies)
    done = repair_study(folder)
    print("\n".join(done) if done else f"{folder}: nothing to repair")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(refuse_script("repair"))
