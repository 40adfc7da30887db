"""`python -m sweeps.tracking STUDY_DIR`: carry a study's records into MLflow and the Arrow tables.

python -m sweeps.tracking STUDY_DIR                  catch up once (exit code 0: all carried, 1: MLflow is behind)
python -m sweeps.tracking STUDY_DIR --follow         go on until the study is closed
python -m sweeps.tracking STUDY_DIR --again          send everything again, also what MLflow has refused
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowrank.errors import InputError
from lowrank.utils import HIDDEN, ExitCode, LockedError, OneLineParser, ensure_home, first_line, hold_lock, redact
from sweeps.records import JOURNAL_FILE, TRACKING_LOG_FILE
from sweeps.tracking.follower import POLL_SECONDS, Follower, ProgressCallback, catch_up, follow
from sweeps.tracking.mlflow_store import MESSAGE_LENGTH, quiet_mlflow
from sweeps.tracking.process import URI_VARIABLE, last_tracking_uri
from sweeps.tracking.store_check import check_store
from sweeps.tracking.uri import check_tracking_uri

LOCK_FILE = "tracking.lock"
LOCK_SECONDS = 5.0  # to wait for another process that carries the same study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words of the command line; None for those of the process.

    Returns:
        0 when all is carried, 1 when MLflow is behind or the disk is full, 2 for bad input or a damaged journal.
    """
    options = make_parser().parse_args(arguments)
    uri = options.tracking_uri or os.environ.get(URI_VARIABLE) or last_tracking_uri(options.study_dir)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if options.parent is not None:  # Ctrl-C is meant for the driver; this process must still carry the last records
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif options.follow:
        signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        ensure_home()
        if options.check:
            _check_address(uri)
            print(*check_store(uri, options.study_dir.resolve()), sep="\n", end="")
            return ExitCode.DONE
        if not options.follow and not (options.study_dir / JOURNAL_FILE).exists():
            raise InputError(f"a study folder must hold {JOURNAL_FILE}, but {options.study_dir} does not")
        _log_to(options.study_dir / TRACKING_LOG_FILE)
        return _carry(options, uri, stop)
    except ValueError as error:  # InputError, or a damaged journal
        print(f"error: {first_line(error, MESSAGE_LENGTH)}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except OSError as error:  # a full disk, most likely
        print(f"error: {first_line(error, MESSAGE_LENGTH)}", file=sys.stderr)
        return ExitCode.FAILED


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns:
        The parser.
    """
    description = (__doc__ or "").partition("\n")[0].partition(": ")[2]
    parser = OneLineParser(prog="python -m sweeps.tracking", description=description)
    parser.add_argument("study_dir", type=Path, help="folder of the study, with its journal")
    parser.add_argument("--tracking-uri", help="MLflow store (default: the study's own)")
    parser.add_argument("--follow", action="store_true", help="go on until the study is closed")
    parser.add_argument("--again", action="store_true", help="send everything again, also what MLflow has refused")
    parser.add_argument("--check", action="store_true", help="send nothing; say whether the store would accept it")
    parser.add_argument("--since", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser


def _carry(options: argparse.Namespace, uri: str, stop: threading.Event) -> int:
    """Carry the study under a lock, so that two processes never make the same run twice; returns the exit code."""
    quiet_mlflow()
    timeout = None if options.follow else LOCK_SECONDS
    parent = options.parent or os.getppid()

    def is_over() -> bool:
        return stop.is_set() or os.getppid() != parent  # nobody needs a tracker whose driver has ended

    lock = hold_lock(options.study_dir / LOCK_FILE, timeout=timeout, poll_seconds=POLL_SECONDS / 5, cancelled=is_over)
    try:
        with lock:
            return _carry_locked(options, uri, stop)
    except LockedError:
        print("another process is carrying this study into MLflow already", file=sys.stderr)
        return ExitCode.FAILED


def _carry_locked(options: argparse.Namespace, uri: str, stop: threading.Event) -> int:
    if options.follow:
        follower = Follower(options.study_dir, uri, again=options.again)
        message = follow(follower, stop, options.since, options.parent or os.getppid())
    else:
        _check_address(uri)
        with _progress_bar() as on_progress:
            follower = Follower(options.study_dir, uri, again=options.again, on_progress=on_progress)
            message = catch_up(follower)
    if message:
        print(message, file=sys.stderr)
        return ExitCode.FAILED
    if not options.follow:
        print(f"{len(follower.entries):,} records are in {redact(uri)}")
    return ExitCode.DONE


@contextmanager
def _progress_bar() -> Iterator[ProgressCallback]:
    """Show on a terminal how many records the store has taken."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("records into MLflow"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda carried, total: bar.update(task, completed=carried, total=total)


def _check_address(uri: str) -> None:
    """Refuse a mistyped address; a server that does not answer is no error, for the tables are written all the same."""
    if HIDDEN in uri or not uri.startswith(("http://", "https://", "postgresql", "mysql", "mssql")):
        check_tracking_uri(uri)


def _log_to(path: Path) -> None:
    """Send warnings of this process, MLflow's included, to a file, and nothing to the screen."""
    logging.basicConfig(filename=path, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.captureWarnings(True)


if __name__ == "__main__":
    sys.exit(main())
