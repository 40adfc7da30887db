"""`python sweeps/run.py --space tt_dims`: one command from a search space to a Pareto front.

Imports stand within functions: `--help`, `--list` and a mistake must not wait for torch, Optuna and Ray.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if not __package__:  # run as a file: this checkout's packages come first, before those of an installed one
    folder = Path(__file__).resolve().parent
    sys.path[:] = [str(folder.parent), *(path for path in sys.path if Path(path).resolve() != folder)]

from lowrank.errors import InputError
from lowrank.utils import ExitCode, report_error, results_alone, run_command
from sweeps.records import FullDiskError, StudyLostError, is_study_disk_full, resume_command, studies_root
from sweeps.space import Task, available_spaces, find_space, read_yaml
from sweeps.study import parse_options
from sweeps.utils import exit_process, install_signal_handlers

if TYPE_CHECKING:
    from sweeps.space import RunOptions

INTERRUPTED_MESSAGE = "interrupted; a study that had begun goes on with --resume NAME"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words of the command line; None for those of the process.

    Returns:
        The exit code.
    """
    options = parse_options(arguments)
    install_signal_handlers()
    return run_command(lambda: _report_end(options), INTERRUPTED_MESSAGE)


def _report_end(options: RunOptions) -> int:
    try:
        return dispatch(options)
    except StudyLostError as error:
        way_on = (
            "; its trials were stopped and nothing more is written. What this driver recorded since is in its folder "
            "alone: move that away before the study is resumed on this machine"
        )
        return report_error(ExitCode.STUDY_LOST, f"error: {error}", way_on)
    except FullDiskError as error:
        way_on = f"; make room and go on with: {resume_command(error.study)}"
        return report_error(ExitCode.DISK_FULL, f"error: {error}", way_on)
    except OSError as error:  # before the journal was open, or after
        if not is_study_disk_full(error, studies_root(options.storage, options.out)):
            raise
        way_on = "; make room and give the command again, or --resume the study if it had begun"
        return report_error(ExitCode.DISK_FULL, f"error: {error}", way_on)


def dispatch(options: RunOptions) -> int:
    """Do what the options ask for.

    Args:
        options: the command line.

    Returns:
        The exit code.

    Raises:
        InputError: the options, a space, a study or data cannot be used.
    """
    task = options.task()
    if task is Task.LIST:
        from sweeps.study import print_spaces

        return print_spaces(as_json=options.json)
    if task is Task.RESUME:
        return _resume(options)
    if task in (Task.REPRODUCE, Task.RETRAIN):
        from sweeps.study import start_retraining

        return start_retraining(options)
    if not options.space:
        raise InputError(f"--space is missing; choose from: {', '.join(available_spaces())}")
    is_series = "studies" in read_yaml(find_space(options.space))  # a wrong name ends here, before slow imports
    if task in (Task.PLAN, Task.PROBE):
        return _inspect(options)
    if is_series:
        from sweeps.study import start_series

        return start_series(options)
    from sweeps.study import space_from_options, start_study

    return start_study(space_from_options(options), options)


def _resume(options: RunOptions) -> int:
    from sweeps.study import is_resumable_series, resume_series, resume_study

    return resume_series(options) if is_resumable_series(options) else resume_study(options)


def _inspect(options: RunOptions) -> int:
    """Plan or probe a space, or every study of a series; returns the largest exit code."""
    from sweeps.study import for_each_study

    with results_alone(alone=options.json):
        if options.plan:
            from sweeps.study import print_plan

            return for_each_study(print_plan, options)
        from sweeps.resources import probe_space

        return for_each_study(probe_space, options)


def entry_point() -> NoReturn:
    """Run the command of an installed package, and end the process."""
    exit_process(main())


if __name__ == "__main__":
    entry_point()
