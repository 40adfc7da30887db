"""`python -m benchmarks.startup CHECKOUT...`: how long commands take to their first output, by checkout.

All run with this interpreter, one after the other and in turn, so that a slower minute meets all checkouts alike. The
first round fills the caches of files and is not counted.

* `wall`: seconds from the start to the first byte of standard output, the least of the rounds.
* `processor`: seconds of all cores until the command ends, the least of the rounds. Other work on the machine hardly
  changes it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lowrank.utils import OneLineParser

COMMANDS = {
    "help": ["--help"],
    "list": ["--list"],
    "plan": ["--space", "tt_dims", "--plan"],
}


@dataclass(frozen=True)
class StartUp:
    """One run of a command, in seconds."""

    wall: float
    processor: float


def run(checkout: Path, words: list[str]) -> StartUp:
    """Run `sweeps/run.py` of a checkout.

    Args:
        checkout: its folder.
        words: of the command line.

    Returns:
        The times.

    Raises:
        RuntimeError: the command failed or printed nothing.
    """
    before, began = os.times(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "sweeps/run.py", *words], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first = process.stdout.read(1)
        wall = time.perf_counter() - began
        process.stdout.read()
    if process.returncode != 0 or not first:
        raise RuntimeError(f"{checkout}: {' '.join(words)} ended with exit code {process.returncode}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return StartUp(wall, spent)


def main() -> int:
    """Measure all commands in all checkouts and print a table."""
    parser = OneLineParser(prog="python -m benchmarks.startup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT", help="a folder of this repository")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="that are counted (5)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="to run (all)")
    options: argparse.Namespace = parser.parse_args()
    print("| command | checkout | wall s | processor s |\n|---|---|---|---|")
    for name in options.commands:
        words = COMMANDS[name]
        runs: dict[Path, list[StartUp]] = {checkout: [] for checkout in options.checkouts}
        for _ in range(options.rounds + 1):
            for checkout, measured in runs.items():
                measured.append(run(checkout.resolve(), words))
        for checkout, measured in runs.items():
            counted = measured[1:]
            wall, processor = min(one.wall for one in counted), min(one.processor for one in counted)
            print(f"| `{' '.join(words)}` | {checkout.resolve().name} | {wall:.2f} | {processor:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
