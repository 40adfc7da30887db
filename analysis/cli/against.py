"""`python -m analysis against STUDY FIELD=VALUE`: every value of a field against one of them, paired by seed."""

from __future__ import annotations

import argparse
import sys

from analysis.cli.arguments import add_study, refuse_script
from analysis.stats import compare_values, comparison_table, reference_lines
from analysis.utils import steps
from lowrank.errors import InputError
from sweeps.records import find_study, load_study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `against`.

    Args:
        parser: receives them.
    """
    add_study(parser)
    parser.add_argument("base", metavar="FIELD=VALUE", help="such as method.name=thin_dense")


def run(arguments: argparse.Namespace) -> int:
    """Print how every value of a field compares with one of them.

    What the references reached is printed below.

    Args:
        arguments: as `add_arguments` declares them.

    Returns:
        The exit code, 0.

    Raises:
        InputError: the base is not written FIELD=VALUE, or there is no such study, searched field or value.
    """
    field, equals, value = arguments.base.partition("=")
    if not equals:
        raise InputError(f"the base must be written FIELD=VALUE (method.name=thin_dense), but got {arguments.base!r}")
    with steps("against", 2) as step:
        step("reading")
        study = load_study(find_study(arguments.study, arguments.studies))
        step("pairs")
        text = comparison_table(compare_values(study, field, value))
    print(text)
    for line in reference_lines(study):
        print(f"\n{line}")
    return 0


if __name__ == "__main__":
    sys.exit(refuse_script("against"))
