"""`python -m sweeps.storage s3://BUCKET/PREFIX NAME --out studies`: fetch a study's folder from its storage."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from lowrank.utils import OneLineParser, relative_path, run_command
from sweeps.storage.fetch import fetch_study


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    parser = OneLineParser(prog="python -m sweeps.storage", description="Fetch a study from its storage.")
    parser.add_argument("uri", help="what the study had as --storage")
    parser.add_argument("name", help="the study")
    parser.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="folder of studies (studies/)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _fetch(options))


def _fetch(options: argparse.Namespace) -> int:
    folder = relative_path(fetch_study(options.uri, options.name, options.out.resolve()))
    print(f"fetched into {folder}; its trials in MLflow: python -m sweeps.tracking {shlex.quote(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
