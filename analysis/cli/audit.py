"""`python -m analysis audit STUDY`: whether early stopping would have stopped the winner, by each rule."""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from analysis.findings import audit_text
from analysis.utils import steps
from sweeps.records import find_study, load_study

add_arguments = add_study


def run(arguments: argparse.Namespace) -> int:
    """Print what each rule of early stopping would have done to the study's winners.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: there is no such study.
    """
    with steps("audit", 2) as step:
        step("reading")
        study = load_study(find_study(arguments.study, arguments.studies))
        step("rules")
        text = audit_text(study)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(refuse_script("audit"))
