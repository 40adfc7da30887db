"""`python -m tests.stress`: run tests again and again beside processes that keep the machine busy, print the failures.

    python -m tests.stress -m "study or faults" --times 5 --busy 2
    python -m tests.stress -m "not slow and not gpu" --times 2 -- -n 2 --dist loadscope

What stands after `--` goes to pytest. The exit code is 1 if a test has failed in any of the runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from lowrank.utils import OneLineParser

LAST_LINES = 15  # of a failure that are printed


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(prog="python -m tests.stress", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("-m", dest="markers", default="study or faults", metavar="MARKERS",
                        help="which tests, as for pytest (%(default)s)")  # fmt: skip
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how often (%(default)s)")
    parser.add_argument("--busy", type=int, default=2, metavar="M", help="processes beside them (%(default)s)")
    parser.add_argument("pytest", nargs="*", metavar="ARGUMENT", help="of pytest, e.g. files")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, print each failure once; returns 1 if there is one."""
    options = make_parser().parse_args(arguments)
    failures: dict[str, list[str]] = defaultdict(list)
    with busy_processes(options.busy):
        for number in range(1, options.times + 1):
            count, failed = run_once(options.markers, options.pytest)
            print(f"run {number} of {options.times}: {count} tests, {len(failed)} failed", flush=True)
            for name, text in failed.items():
                failures[name].append(text)
    for name, texts in failures.items():
        print(f"\n{name} failed {len(texts)} times in {options.times} runs; the last lines of the first:")
        print("\n".join(texts[0].splitlines()[-LAST_LINES:]))
    return bool(failures)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many CPUs busy while the block runs."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> NoReturn:
    while True:
        pass


def run_once(markers: str, arguments: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Run pytest once.

    Args:
        markers: which tests.
        arguments: further ones of pytest.

    Returns:
        How many tests have run, and the text of each failure by the test's name.

    Raises:
        RuntimeError: pytest has not run any test.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", markers, f"--junitxml={report}", *arguments]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest has ended with {run.returncode}:\n{run.stdout}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    if not cases:
        raise RuntimeError(f"no test has the markers {markers!r}")
    failed = {}
    for case in cases:
        for outcome in [*case.iter("failure"), *case.iter("error")]:
            failed[f"{case.get('classname')}.{case.get('name')}"] = outcome.text or outcome.get("message", "")
    return len(cases), failed


if __name__ == "__main__":
    sys.exit(main())
