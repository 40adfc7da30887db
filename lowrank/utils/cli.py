"""What all command lines share: a parser, exit codes, and errors as one line on standard error."""

from __future__ import annotations

import argparse
import enum
import errno
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, TextIO

from lowrank.errors import InputError, LowrankError, UncountableError, did_you_mean, shorten
from lowrank.utils.atomic_files import absolute_path
from lowrank.utils.processes import ensure_compiler_cache, ensure_home
from lowrank.utils.text import describe_error, is_of_network

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the disk's fault, not the program's
MESSAGE_CHARACTERS = 300  # of an error on standard error, without commands in its message
MIN_CHARACTERS = 80  # of what went wrong, however long the way on is
_COMMAND = re.compile(r"python (-m (lowrank|sweeps|analysis)\b|sweeps/)")  # of this project, in a message
_ENVIRONMENT = "; give the command inside the environment that `make sweep` makes: . .venv/bin/activate"
RERUN_MESSAGE = "interrupted; the same command begins again"
_RESULTS: ContextVar[TextIO | None] = ContextVar("results", default=None)  # standard output that is kept for them


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    DISK_FULL = 3
    HEAD_LOST = 4  # the head node of the cluster, or Ray on this machine, does not answer
    NOT_STORED = 5  # a study has ended well, but its storage lacks the end
    STUDY_LOST = 6  # another driver has taken the study over
    INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C has ended


EXIT_CODE_TEXTS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the command ran but its result is not whole: no trial was completed, a file could not be "
    "exported or differs, a damaged study was found; the lines on standard error say which",
    ExitCode.BAD_INPUT: "wrong input: one line with the rule, the value and the choices; nothing was written",
    ExitCode.DISK_FULL: "the study's disk is full; after making room, `--resume` goes on",
    ExitCode.HEAD_LOST: "the head node of the Ray cluster, or Ray on the driver's machine, does not answer",
    ExitCode.NOT_STORED: "the study is done, but its `--storage` lacks the end",
    ExitCode.STUDY_LOST: "another driver has taken the study over; this one has written nothing since",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C or SIGTERM; the last line says how to go on",
}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser without abbreviations that reports a mistake in one line.

    Args:
        options: of `argparse.ArgumentParser`. A typo of one option must not be taken for another.
    """

    _words: Sequence[str] = ()

    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]  # argparse's own overloads are many
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, and remember the words for `error`."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # An unset variable: --storage "$BUCKET". A flag whose value may be left out has its constant instead
        if not arg_string and action.option_strings and arg_string != action.const:
            raise argparse.ArgumentError(action, "must not be empty")
        if action.type is Path:
            try:
                absolute_path(arg_string)
            except InputError as error:
                raise argparse.ArgumentError(action, str(error)) from error
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        """Print `message` on standard error and exit with code 2; suggest a flag for an unknown one.

        Args:
            message: what is wrong with the command line.
        """
        # A flag with a typo is also one that is missing
        if message.startswith("the following arguments are required"):
            flags = [word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"]
            unknown = [flag for flag in flags if flag not in self._option_string_actions]
            message = f"unrecognized arguments: {unknown[0]}" if unknown else message
        _, is_unknown, words = message.partition("unrecognized arguments: ")
        if is_unknown:
            flag = words.split()[0].partition("=")[0]
            hint = did_you_mean(flag.lstrip("-"), [name.lstrip("-") for name in self._option_string_actions])
            message += hint.replace("did you mean ", "did you mean --")
        message = shorten(" ".join(message.splitlines()), MESSAGE_CHARACTERS - 30)
        self.exit(ExitCode.BAD_INPUT, f"error: {message}; see --help\n")


def run_command(command: Callable[[], int], interrupted: str = RERUN_MESSAGE) -> int:
    """Run a command and turn the errors that a user can mend into one line.

    Args:
        command: does the work and returns an exit code.
        interrupted: printed after Ctrl-C: how to go on.

    Returns:
        The command's exit code; `BAD_INPUT` for an InputError or UncountableError, `INTERRUPTED` for Ctrl-C, `FAILED`
        for a disk that is full or cannot be written, and for a HungError; `BAD_INPUT` for an error of the user's
        network too, and for a Python without torch. Other errors are raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal does not have must end nothing
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
    try:
        home = ensure_home()
        if home is not None:
            print(f"this user has no home; what belongs there goes to {home}", file=sys.stderr)
        line = ensure_compiler_cache()
        if line is not None:
            print(line, file=sys.stderr)
        return command()
    except (InputError, UncountableError) as error:
        return report_error(ExitCode.BAD_INPUT, f"error: {error}")
    except LowrankError as error:  # nothing that other input would change, e.g. a teacher whose training diverged
        return report_error(ExitCode.FAILED, f"error: {error}")
    except KeyboardInterrupt:
        return report_error(ExitCode.INTERRUPTED, interrupted)
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is buffered goes nowhere when the process ends
        return ExitCode.FAILED
    except ModuleNotFoundError as error:
        if importlib.util.find_spec("torch") is not None:
            raise
        return report_error(ExitCode.BAD_INPUT, f"error: {sys.executable} has no package {error.name!r}{_ENVIRONMENT}")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            return report_error(ExitCode.FAILED, f"error: {error}")
        if not is_of_network(error):
            raise
        return report_error(ExitCode.BAD_INPUT, f"error: the network raises {describe_error(error)}")


@contextmanager
def results_alone(*, alone: bool) -> Iterator[None]:
    """Keep standard output for `print_result` inside `with`.

    So another program can read it. A network of the user's may print while it runs; that goes to standard error.

    Args:
        alone: False for a command that people read, where nothing changes.

    Yields:
        Nothing.
    """
    if not alone:
        yield
        return
    before = _RESULTS.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _RESULTS.reset(before)


def print_result(text: str) -> None:
    """Print what a command was asked for.

    Args:
        text: without the last line break.
    """
    print(text, file=_RESULTS.get() or sys.stdout, flush=True)


def report_error(code: int, message: str, way_on: str = "") -> int:
    """Print a message on standard error as one line of MESSAGE_CHARACTERS at most.

    Args:
        code: the exit code that belongs to the message.
        message: what went wrong, and what to do. Commands of this project in it must be whole: from the first of them
            on it is not shortened, and not counted.
        way_on: ends the line; a command in it must be whole, so it is not shortened either.

    Returns:
        `code`.
    """
    line = " ".join(message.splitlines())
    command = _COMMAND.search(line)
    start = len(line) if command is None else command.start()
    limit = max(MESSAGE_CHARACTERS - len(way_on), MIN_CHARACTERS)
    print(shorten(line[:start], limit) + line[start:] + way_on, file=sys.stderr)
    return code
