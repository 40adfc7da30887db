"""`python -m analysis profile STUDY`: where the time of a study went."""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from analysis.findings import profile_lines, profile_study
from sweeps.records import find_study, load_study

add_arguments = add_study


def run(arguments: argparse.Namespace) -> int:
    """Print the time that each part of a study took.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study.
    """
    study = load_study(find_study(arguments.study, arguments.studies))
    print(*profile_lines(profile_study(study)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(refuse_script("profile"))
